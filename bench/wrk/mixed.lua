-- What SDKs do together: of 20 requests 10 identities, 9 flags, 1 document.
dofile("bench/wrk/report.lua")
local requests = {}
local number = 0

function init()
  local body = post(body_file())
  local flags = wrk.format("GET", "/api/v1/flags/")
  for at = 1, 20 do requests[at] = at % 2 == 0 and body or flags end
  requests[7] = wrk.format("GET", "/api/v1/environment-document/")
end

request = function()
  number = number % 20 + 1
  return requests[number]
end
