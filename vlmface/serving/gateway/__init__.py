"""`vlmface gateway`: an HTTP server in front of a model. `pip install 'vlmface[gateway]'`.

settings, http_errors   the limits; error reasons and their HTTP status codes
limits                  API keys, rate limits, requests in flight
request_parsing         a body becomes an `AnalyzeRequest`: limited, checked, in memory only
inference               an `AnalyzeRequest` becomes reports
observability           request ids, logs, metrics; they contain nothing of pictures or answers
app, command            the routes and their OpenAPI; the server and its shutdown
"""
