-- GET flags.
dofile("bench/wrk/report.lua")
wrk.path = os.getenv("BENCH_PATH") or "/api/v1/flags/"
together()
