-- GET environment-document; needs a server-side key.
dofile("bench/wrk/report.lua")
wrk.path = "/api/v1/environment-document/"
