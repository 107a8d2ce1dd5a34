-- POST identities, a new identifier and other trait values each time. BENCH_BODY names a file that
-- has "bench-user" as identifier and "age": 42 among its traits.
dofile("bench/wrk/report.lua")
local before, middle, after
local number = 0

function init()
  local body = body_file()
  before, middle, after = body:match('^(.-)bench%-user(.-"trait_key":"age","trait_value":)42(.*)$')
  assert(before, "BENCH_BODY has bench-user and age 42")
end

request = function()
  number = number + 1
  return post(before .. "user-" .. number .. middle .. (20 + number % 50) .. after)
end
