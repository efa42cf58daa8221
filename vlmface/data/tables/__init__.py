"""The tables of the data set `table`: files, cells, filters, and the fields in their columns."""
