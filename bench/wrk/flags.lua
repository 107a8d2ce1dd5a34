-- GET flags, or BENCH_PATH.
dofile("bench/wrk/report.lua")
function init() serve(formats("GET", os.getenv("BENCH_PATH") or "/api/v1/flags/")) end
