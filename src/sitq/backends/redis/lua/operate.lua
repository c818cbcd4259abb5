-- What operators ask: look at tasks and queues, cancel, requeue, purge, pause.

local function shown(id, with_payload)
  local v = call('HMGET', TASK .. id, unpack(SHOWN))
  if not v[1] then return false end
  if not with_payload then v[20] = false end
  v[21] = id
  return v
end

-- The version of what is stored here; 0 when there is nothing yet. With an argument, that is made to be it then.
function ops.open(i, n)
  local version = call('HGET', P, 'version')
  if not version and n > 0 then
    version = ARGV[i]
    call('HSET', P, 'version', version)
  end
  return tonumber(version or 0)
end

function ops.touch() return call('HINCRBY', P, 'touched', 1) end

function ops.task(i) return { int(now), shown(ARGV[i], true) } end

-- --- by hand ---------------------------------------------------------------------------------------------------------

-- Make a task queued for another round, unless another one holds its unique key.
local function again(t)
  if t.u then
    local id = holder(t.u)
    if id and id ~= t.id then return false end
    call('SET', UNIQUE .. t.u, t.id)
  end
  local fe, fn = next_fence(t.fe, t.fn)
  if t.s ~= '1' then
    queue(t, 0, '', 'fe', fe, 'fn', fn, 'a', 0, 'k', 0, 'sk', 0)
    call('HDEL', t.key, 'e', 'v')
  else
    queue(t, 0, '', 'fe', fe, 'fn', fn)
  end
  return true
end

local function run_by_hand(t)
  leave(t)
  local fe, fn = next_fence(t.fe, t.fn)
  local ends = int(now + 30 * SECOND)
  call('HSET', t.key, 's', '1', 'w', 'operator', 'l', ends, 'r', int(now), 'fe', fe, 'fn', fn, 'a', t.a + 1)
  call('SADD', HELD .. 'operator', t.id)
  call('ZADD', LEASES, ends, t.id)
end

local MOVES = { ['0'] = '123', ['1'] = '023', ['2'] = '0', ['3'] = '0' }

-- Answer the status before, and whether the move was refused or kept off by a unique key.
function ops.move(i)
  tick()
  local t, status = load(ARGV[i]), ARGV[i + 1]
  if not t then return false end
  local old = t.s
  if old == status then return { old, 'same' } end
  if not string.find(MOVES[old], status) then return { old, 'refused' } end
  if status == '0' then return { old, again(t) and 'done' or 'taken' } end
  if status == '1' then
    run_by_hand(t)
  else
    local fe, fn = next_fence(t.fe, t.fn)
    local why = string.match(call('HGET', t.key, 'e') or '', '"reason":"(%l+)"') or ''
    finish(t, status, why, 'fe', fe, 'fn', fn)
  end
  return { old, 'done' }
end

function ops.write_result(i)
  local t = load(ARGV[i])
  if not t then return 0 end
  call('HSET', t.key, 'e', ARGV[i + 1], 'v', ARGV[i + 2], 'wt', '')
  tell(t)
  return 1
end

function ops.cancel(i, n)
  tick()
  local answers = {}
  for k = i, i + n - 1 do
    local t = load(ARGV[k])
    if not t then
      answers[#answers + 1] = 'unknown'
    elseif t.s == '0' then
      end_cancelled(t)
      answers[#answers + 1] = 'cancelled'
    elseif t.s == '1' then
      call('HSET', t.key, 'cr', '1')
      answers[#answers + 1] = 'requested'
    else
      answers[#answers + 1] = 'finished'
    end
  end
  return answers
end

function ops.requeue(i, n)
  tick()
  local answers = {}
  for k = i, i + n - 1 do
    local t = load(ARGV[k])
    answers[#answers + 1] = t and t.s >= '2' and again(t) and 1 or 0
  end
  return answers
end

function ops.pause(i)
  local name = ARGV[i]
  if ARGV[i + 1] == '1' then return call('SADD', PAUSED, name) end
  call('SREM', PAUSED, name)
  local count = call('ZCARD', READY .. name)
  if count > 0 then fresh[name] = count end
end

-- --- many ------------------------------------------------------------------------------------------------------------

-- A page of tasks, newest first, from before a place in the order of arrival: { now, place to go on from, tasks }.
-- With a third argument from after that task; false if there is none.
function ops.page(i)
  local from = ARGV[i] == '' and '+inf' or '(' .. ARGV[i]
  local after = ARGV[i + 2]
  if after ~= '' then
    local place = call('ZSCORE', ALL, after)
    if not place then return false end
    from = '(' .. place
  end
  local entries = call('ZREVRANGEBYSCORE', ALL, from, '-inf', 'WITHSCORES', 'LIMIT', 0, ARGV[i + 1])
  local tasks, place = {}, ''
  for k = 1, #entries, 2 do
    tasks[#tasks + 1] = shown(entries[k], false)
    place = entries[k + 1]
  end
  return { int(now), place, tasks }
end

local REASONS = { cancelled = true, expired = true, quarantined = true }

-- Must say what `sitq.core.phase_of` says.
local function phase_of(v)
  if v.s == '2' then return 'completed' end
  if v.s == '3' then return REASONS[v.why] and v.why or 'failed' end
  if v.s == '1' then return tonumber(v.l) <= now and 'stalled' or 'running' end
  if v.x and tonumber(v.x) <= now then return 'expired' end
  if tonumber(v.d) > now then return tonumber(v.a or 0) > 0 and 'retrying' or 'scheduled' end
  return 'ready'
end

-- Count a page of tasks: { place to go on from, queue, phase, how many, due first, … }.
function ops.census(i)
  local from = ARGV[i] == '' and '+inf' or '(' .. ARGV[i]
  local entries = call('ZREVRANGEBYSCORE', ALL, from, '-inf', 'WITHSCORES', 'LIMIT', 0, ARGV[i + 1])
  local counts, order = {}, {}
  for k = 1, #entries, 2 do
    local v = call('HMGET', TASK .. entries[k], 's', 'q', 'why', 'l', 'x', 'd', 'a')
    if v[1] then
      local phase = phase_of({ s = v[1], why = v[3], l = v[4], x = v[5], d = v[6], a = v[7] })
      local name = phase .. ' ' .. v[2]
      local group = counts[name]
      if not group then
        group = { queue = v[2], phase = phase, count = 0, due = v[6] }
        counts[name] = group
        order[#order + 1] = group
      end
      group.count = group.count + 1
      if v[6] < group.due then group.due = v[6] end
    end
  end
  local answer = { entries[#entries] or '' }
  for _, group in ipairs(order) do
    for _, value in ipairs({ group.queue, group.phase, group.count, group.due }) do answer[#answer + 1] = value end
  end
  return answer
end

function ops.paused() return call('SMEMBERS', PAUSED) end

function ops.workers()
  local answer = { int(now) }
  local seen = call('ZRANGEBYSCORE', SEEN, '(' .. int(now), '+inf', 'WITHSCORES')
  for k = 1, #seen, 2 do
    for _, value in ipairs({ seen[k], seen[k + 1], call('HGET', WORKERS, seen[k]) or '' }) do
      answer[#answer + 1] = value
    end
  end
  return answer
end

local function forget(id)
  local v = call('HMGET', TASK .. id, 's', 'u')
  if v[1] and v[1] < '2' then return 0 end
  call('DEL', TASK .. id)
  call('ZREM', ALL, id)
  call('ZREM', DONE, id)
  if v[2] and call('GET', UNIQUE .. v[2]) == id then call('DEL', UNIQUE .. v[2]) end
  return 1
end

function ops.forget(i, n)
  tick()
  local count = 0
  for k = i, i + n - 1 do count = count + forget(ARGV[k]) end
  return count
end

-- Delete what is past its retention, and workers not heard of for a day.
function ops.purge(i)
  tick()
  local count = 0
  for _, id in ipairs(call('ZRANGEBYSCORE', DONE, '-inf', now, 'LIMIT', 0, ARGV[i])) do count = count + forget(id) end
  for _, worker in ipairs(call('ZRANGEBYSCORE', SEEN, '-inf', now - DAY * SECOND, 'LIMIT', 0, ARGV[i])) do
    call('ZREM', SEEN, worker)
    call('HDEL', WORKERS, worker)
  end
  return count
end
