-- GET environment-document; needs a server-side key.
dofile("bench/wrk/report.lua")
function init() serve(formats("GET", os.getenv("BENCH_PATH") or "/api/v1/environment-document/")) end
