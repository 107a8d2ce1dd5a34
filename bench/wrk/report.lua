-- Shared by the scripts beside it: where the key and body come from, and one line of JSON at the end.
-- Run from the repository's root, such as
--   BENCH_KEY=ser.k wrk -t1 -c32 -d5s --latency -s bench/wrk/flags.lua http://127.0.0.1:8000
key = os.getenv("BENCH_KEY") or "demo-client-side-key"
wrk.headers["X-Environment-Key"] = key
if os.getenv("BENCH_GZIP") then wrk.headers["Accept-Encoding"] = "gzip" end

function body_file()
  local path = os.getenv("BENCH_BODY")
  if not path then return '{"identifier":"wrk","traits":[]}' end
  local file = assert(io.open(path))
  local body = file:read("*a")
  file:close()
  return body
end

-- BENCH_TOGETHER requests are sent at once, and their answers awaited.
function together()
  local many = tonumber(os.getenv("BENCH_TOGETHER") or "1")
  if many == 1 then return end
  local requests
  function init() requests = string.rep(wrk.format(), many) end
  function request() return requests end
end

function post(body)
  local lines = {"POST /api/v1/identities/ HTTP/1.1", "Host: " .. wrk.host, "X-Environment-Key: " .. key,
    "Content-Type: application/json", "Content-Length: " .. #body, "", body}
  return table.concat(lines, "\r\n")
end

function done(summary, latency)
  local e = summary.errors
  io.write(string.format(
    '{"requests":%d,"seconds":%.4f,"errors":%d,"not_200":%d,"p50_us":%d,"p90_us":%d,"p99_us":%d,"p999_us":%d}\n',
    summary.requests, summary.duration / 1e6, e.connect + e.read + e.write + e.timeout, e.status,
    latency:percentile(50), latency:percentile(90), latency:percentile(99), latency:percentile(99.9)))
end
