-- What SDKs do together: of 20 requests 10 identities, 9 flags, 1 document.
dofile("bench/wrk/report.lua")

function init()
  local bodies = formats("POST", "/api/v1/identities/", body_file())
  local flags, document = formats("GET", "/api/v1/flags/"), formats("GET", "/api/v1/environment-document/")
  local list = {}
  for at = 1, 20 do
    local client = at % #bodies + 1
    list[at] = at == 7 and document[client] or (at % 2 == 0 and bodies or flags)[client]
  end
  serve(list)
end
