-- GET flags, with a head that never came before: a request id in each.
dofile("bench/wrk/report.lua")
local number = 0

request = function()
  number = number + 1
  wrk.headers["X-Request-Id"] = "b7e2f1c0-" .. number
  return wrk.format("GET", "/api/v1/flags/")
end
