-- GET flags, with a head that never came before: a request id in each.
dofile("bench/wrk/report.lua")
function init()
  local list = formats("GET", "/api/v1/flags/")
  for at, text in ipairs(list) do
    list[at] = text:gsub("\r\n\r\n$", "\r\nX-Request-Id: user-000000\r\n\r\n")
  end
  serve(list)
end
