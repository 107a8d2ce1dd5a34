-- POST identities, the same body each time (BENCH_BODY names a file).
dofile("bench/wrk/report.lua")
wrk.path = "/api/v1/identities/"
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.body = body_file()
