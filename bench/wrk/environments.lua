-- GET flags of BENCH_ENVIRONMENTS environments in turn; their keys are BENCH_KEY-0, -1, ...
dofile("bench/wrk/report.lua")
local requests = {}
local number = 0

function init()
  local base = key
  for at = 1, tonumber(os.getenv("BENCH_ENVIRONMENTS")) do
    key = base .. "-" .. (at - 1)
    requests[at] = formats("GET", "/api/v1/flags/")[1]
  end
end

request = function()
  -- A step that is prime to the usual counts, so that neighbours are not asked one after another.
  number = (number + 7919) % #requests
  return requests[number + 1]
end
