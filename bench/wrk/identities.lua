-- POST identities, or BENCH_PATH, with the body of the file BENCH_BODY.
dofile("bench/wrk/report.lua")
function init() serve(formats("POST", os.getenv("BENCH_PATH") or "/api/v1/identities/", body_file())) end
