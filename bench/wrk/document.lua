-- GET environment-document; needs a server-side key.
dofile("bench/wrk/report.lua")
wrk.path = os.getenv("BENCH_PATH") or "/api/v1/environment-document/"
