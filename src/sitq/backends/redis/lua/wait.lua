-- Waiting for work and for results, and the end of the script: run the operations, wake those they concern.
--
-- A waiting worker is a field of WAITING, named `handle:worker`: until when it waits, and its queues. Whoever makes a
-- task ready takes one waiter out and publishes its worker's id to the channel of its handle: one waiter for each task.

local function wants(record, name)
  local queues = string.match(record, '^%d+\n(.*)$')
  return queues == '' or string.find('\n' .. queues .. '\n', '\n' .. name .. '\n', 1, true)
end

-- In how many microseconds there may be work: 0 now, -1 unknown. A waiter that finds none is noted.
function ops.look(i, n)
  tick()
  local waiter, deadline = ARGV[i], ARGV[i + 1]
  local queues = n > 2 and { unpack(ARGV, i + 2, i + n - 1) } or nil
  for _, name in ipairs(open(queues or call('SMEMBERS', QUEUES))) do
    if call('EXISTS', READY .. name) == 1 then return 0 end
  end
  if deadline ~= '' then
    call('HSET', WAITING, waiter, int(now + deadline) .. '\n' .. table.concat(queues or {}, '\n'))
  end
  local soonest = -1
  for _, set in ipairs({ DUE, LEASES }) do
    local first = call('ZRANGE', set, 0, 0, 'WITHSCORES')[2]
    if first and (soonest < 0 or first - now < soonest) then soonest = math.max(first - now, 1) end
  end
  return math.floor(soonest)
end

-- A waiter goes; if it has just been woken, another one is.
function ops.leave(i)
  if call('HDEL', WAITING, ARGV[i]) == 1 then return end
  for _, name in ipairs(call('SMEMBERS', QUEUES)) do
    if call('EXISTS', READY .. name) == 1 then fresh[name] = fresh[name] or 1 end
  end
end

-- The results of tasks, and notes for those that have none: { now, id, header, payload, shown, … }.
function ops.results(i, n)
  local handle, answer = ARGV[i], { int(now) }
  for k = i + 1, i + n - 1 do
    local id = ARGV[k]
    local v = call('HMGET', TASK .. id, 's', 'e', 'v', 'x', 'wt')
    local is_expired = v[2] == EXPIRED or (v[1] == '0' and v[4] and tonumber(v[4]) <= now)
    local is_there = v[1] and (is_expired or v[2])
    for _, value in ipairs({ id, is_expired and EXPIRED or v[2] or '', v[3] or '', is_expired and shown(id) or v[4] }) do
      answer[#answer + 1] = value
    end
    if v[1] and not is_there and handle ~= '' then
      local waiting = v[5] or ''
      if not string.find(waiting, handle, 1, true) and #waiting < 2000 then
        call('HSET', TASK .. id, 'wt', waiting == '' and handle or waiting .. ',' .. handle)
      end
    end
  end
  return answer
end

-- --- the batch -------------------------------------------------------------------------------------------------------

local function wake(waiter)
  call('HDEL', WAITING, waiter)
  local handle, worker = string.match(waiter, '^([^:]+):(.*)$')
  return call('PUBLISH', P .. ':wake:' .. handle, 'w' .. worker) > 0
end

local function wake_up()
  if not herd and next(fresh) == nil then return end
  local waiting = call('HGETALL', WAITING)
  for name, count in pairs(fresh) do
    if call('SISMEMBER', PAUSED, name) == 1 then fresh[name] = 0 end
  end
  for k = 1, #waiting, 2 do
    local waiter, record = waiting[k], waiting[k + 1]
    if tonumber(string.match(record, '^%d+')) + 60 * SECOND < now then
      call('HDEL', WAITING, waiter) -- died without a word
    elseif herd then
      wake(waiter)
    else
      for name, count in pairs(fresh) do
        if count > 0 and wants(record, name) then
          if wake(waiter) then fresh[name] = count - 1 end
          break
        end
      end
    end
  end
end

local function publish_ended()
  for handle, ids in pairs(ended) do call('PUBLISH', P .. ':wake:' .. handle, 'd' .. table.concat(ids, '\n')) end
end

local answers, at = {}, 3
while at <= #ARGV do
  local name, count = ARGV[at], tonumber(ARGV[at + 1])
  local is_done, answer = pcall(ops[name], at + 2, count)
  if not is_done then answer = type(answer) == 'table' and answer or { err = tostring(answer) } end
  if answer == nil then answer = false end
  answers[#answers + 1] = answer
  at = at + 2 + count
end
wake_up()
publish_ended()
return answers
