"""`vlmface data init`: look at a user's data and write the YAML file of a data set.

`names` and `columns` find out what the columns of a table are, `pictures` where the pictures are,
`labels` which label space the words are, `divide` how rows are split; `writing` makes the file of
all that and `command` is the command.
"""
