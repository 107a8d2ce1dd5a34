-- Shared by the scripts beside it: requests as real clients send them, and one line of JSON at the end.
-- Run from the repository's root, such as
--   BENCH_KEY=ser.k wrk -t1 -c32 -d5s --latency -s bench/wrk/flags.lua http://127.0.0.1:8000
-- BENCH_HEADS names a file with the header fields of clients, an empty line between two of them
-- (bench/heads.py); they are sent in turn. Each request has another number in the place of user-000000.
key = os.getenv("BENCH_KEY") or "demo-client-side-key"
local number = 0

local function heads()
  local path = os.getenv("BENCH_HEADS")
  if not path then return {"User-Agent: python-requests/2.32.3\nAccept-Encoding: gzip, deflate\nAccept: */*"} end
  local file = assert(io.open(path))
  local found = {}
  for head in (file:read("*a"):gsub("%s+$", "") .. "\n\n"):gmatch("(.-)\n\n") do found[#found + 1] = head end
  file:close()
  return found
end

function body_file()
  local path = os.getenv("BENCH_BODY")
  if not path then return '{"identifier":"user-000000","traits":[]}' end
  local file = assert(io.open(path))
  local body = file:read("*a")
  file:close()
  return body
end

-- One request for each client.
function formats(method, path, body)
  local found = {}
  for _, head in ipairs(heads()) do
    local lines = {method .. " " .. path .. " HTTP/1.1", "Host: " .. wrk.host, "X-Environment-Key: " .. key}
    for line in (head .. "\n"):gmatch("(.-)\n") do lines[#lines + 1] = line end
    if body then
      lines[#lines + 1] = "Content-Type: application/json"
      lines[#lines + 1] = "Content-Length: " .. #body
    end
    found[#found + 1] = table.concat(lines, "\r\n") .. "\r\n\r\n" .. (body or "")
  end
  return found
end

-- Sends these requests in turn, each with a number of its own; BENCH_TOGETHER of them at once.
function serve(list)
  local many = tonumber(os.getenv("BENCH_TOGETHER") or "1")
  local pieces = {}
  for at, text in ipairs(list) do
    pieces[at] = {}
    local from = 1
    while true do
      local start, stop = text:find("user-000000", from, true)
      pieces[at][#pieces[at] + 1] = text:sub(from, start and start + 4 or #text)
      if not start then break end
      from = stop + 1
    end
  end
  local function next_request()
    number = number + 1
    local parts = pieces[number % #pieces + 1]
    if #parts == 1 then return parts[1] end
    return table.concat(parts, string.format("%06d", number % 1000000))
  end
  if many == 1 then
    request = next_request
    return
  end
  request = function()
    local batch = {}
    for at = 1, many do batch[at] = next_request() end
    return table.concat(batch)
  end
end

function done(summary, latency)
  local e = summary.errors
  io.write(string.format(
    '{"requests":%d,"seconds":%.4f,"errors":%d,"not_200":%d,"p50_us":%d,"p90_us":%d,"p99_us":%d,"p999_us":%d}\n',
    summary.requests, summary.duration / 1e6, e.connect + e.read + e.write + e.timeout, e.status,
    latency:percentile(50), latency:percentile(90), latency:percentile(99), latency:percentile(99.9)))
end
