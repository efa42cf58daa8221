"""`vlmface gateway`: a model that reads faces, behind HTTP. `pip install 'vlmface[gateway]'`.

settings, refusals    what may be set; what is refused, with which status
limits                keys, rates, how much is at work at once
intake                a body becomes an `Asked`: bounded, in memory, checked
analysis              a picture and what is asked of it become reports
observe               request ids, logs, metrics; nothing of a picture or an answer in them
app, command          the routes and their OpenAPI; the server and its end
"""
