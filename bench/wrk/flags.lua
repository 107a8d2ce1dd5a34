-- GET flags.
dofile("bench/wrk/report.lua")
wrk.path = "/api/v1/flags/"
