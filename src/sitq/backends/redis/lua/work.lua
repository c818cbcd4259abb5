-- What producers and workers ask: accept, reserve, settle, extend, abandon. An operation gets the place of its first
-- argument in ARGV, and how many there are.

local ops = {}

-- --- accept ----------------------------------------------------------------------------------------------------------

-- Return the id of the task that holds a unique key now.
local function holder(key)
  local id = call('GET', UNIQUE .. key)
  if not id then return nil end
  local v = call('HMGET', TASK .. id, 's', 'uu')
  if not v[1] or (v[1] >= '2' and tonumber(v[2] or 0) <= now) then return nil end
  return id
end

-- A repeat after a lost connection finds its own task: the call under this id is the same.
local function accept_one(i, seq, again, everyone)
  local id, queue_name, unique, payload = ARGV[i], ARGV[i + 1], ARGV[i + 8], ARGV[i + 11]
  local key = TASK .. id
  if call('EXISTS', key) == 1 then return again and call('HGET', key, 'y') == payload and 1 or id end
  local held_by = unique ~= '' and holder(unique)
  if held_by then return held_by end
  local created, eta = tonumber(ARGV[i + 3]), ARGV[i + 4]
  -- Without an eta it is ready at once, whatever the producer's clock says.
  local due = format('%016.0f', eta == '' and math.min(created, now) or math.max(created, tonumber(eta)))
  local t = { id = id, key = key, q = queue_name, p = ARGV[i + 2], d = due, n = format('%014.0f', seq) }
  local fields = { 's', '0', 'q', t.q, 'p', t.p, 'd', due, 'n', t.n, 'c', ARGV[i + 3], 'm', ARGV[i + 5], 'y', payload }
  local function set(name, value)
    if value ~= '' then
      fields[#fields + 1] = name
      fields[#fields + 1] = value
    end
  end
  set('o', ARGV[i + 6])
  set('x', ARGV[i + 7])
  set('rt', ARGV[i + 10])
  if unique ~= '' then
    set('u', unique)
    set('uu', int(now + ARGV[i + 9]))
    call('SET', UNIQUE .. unique, id)
  end
  call('HSET', key, unpack(fields))
  t.x = ARGV[i + 7] ~= '' and ARGV[i + 7] or nil
  everyone[#everyone + 1] = seq
  everyone[#everyone + 1] = id
  arm(t)
  return 1
end

local ACCEPTED = 12 -- arguments of a task

function ops.accept(i, n)
  local again, count = ARGV[i] == '1', (n - 1) / ACCEPTED
  local seq = call('HINCRBY', P, 'seq', count) - count
  local answers, everyone = {}, {}
  tick()
  for k = 1, count do
    answers[k] = accept_one(i + 1 + (k - 1) * ACCEPTED, seq + k, again, everyone)
  end
  for from = 1, #everyone, 2000 do
    call('ZADD', ALL, unpack(everyone, from, math.min(from + 1999, #everyone)))
  end
  return answers
end

-- --- reserve ---------------------------------------------------------------------------------------------------------

-- Note that a worker lives; written at most every third of its lease.
local function keep_worker(id, lease, record)
  local ends = tonumber(call('ZSCORE', SEEN, id) or 0)
  if ends - now < lease * 2 / 3 or ends - now > lease then
    call('ZADD', SEEN, int(now + lease), id)
    call('HSET', WORKERS, id, record)
  end
end

local function open(queues)
  local found = {}
  for _, name in ipairs(queues) do
    if call('SISMEMBER', PAUSED, name) == 0 then found[#found + 1] = name end
  end
  return found
end

-- Take the first `count` members of several ready sets, in their common order.
local function merge(queues, count)
  local heads, taken = {}, {}
  local step = math.min(count, 64)
  for _, name in ipairs(queues) do
    local members = call('ZRANGE', READY .. name, 0, step - 1)
    if #members > 0 then
      heads[#heads + 1] = { key = READY .. name, members = members, at = 1, used = 0 }
    elseif call('EXISTS', READY .. name) == 0 then
      call('SREM', QUEUES, name)
    end
  end
  while #taken < count do
    local best
    for _, head in ipairs(heads) do
      local member = head.members[head.at]
      if member and (not best or member < best.members[best.at]) then best = head end
    end
    if not best then break end
    taken[#taken + 1] = best.members[best.at]
    best.at, best.used = best.at + 1, best.used + 1
    if best.at > step then
      best.members, best.at = call('ZRANGE', best.key, best.used, best.used + step - 1), 1
    end
  end
  for _, head in ipairs(heads) do
    if head.used > 0 then call('ZPOPMIN', head.key, head.used) end
  end
  return taken
end

local function take(queues, count)
  if #queues ~= 1 then return merge(queues, count) end
  local popped, members = call('ZPOPMIN', READY .. queues[1], count), {}
  for k = 1, #popped, 2 do members[#members + 1] = popped[k] end
  return members
end

-- Give a task to a worker; one that runs already is taken over. Returns what is shown of it, or nothing when its worker
-- died with a request to cancel unanswered.
local function run(id, worker, lease_until, reservation)
  local key = TASK .. id
  local v = call('HMGET', key, unpack(SHOWN))
  if not v[1] then return nil end -- its safety time is over, or somebody deleted it
  if v[1] == '0' and v[8] and tonumber(v[8]) <= now then -- came in this batch, too late already
    finish(load(id), '3', 'expired', 'e', EXPIRED, 'v', '')
    return nil
  end
  local attempt, crashes, is_taken_over = (v[9] or 0) + 1, tonumber(v[10] or 0), v[1] == '1'
  if is_taken_over then
    if v[16] == '1' then
      end_cancelled(load(id))
      return nil
    end
    crashes = crashes + 1
    call('SREM', HELD .. v[14], id)
  end
  if v[8] then call('ZREM', EXPIRING, id) end
  local fe, fn = next_fence(v[12], v[13])
  v[1], v[9], v[10], v[12], v[13], v[14], v[15], v[19] = '1', attempt, crashes, fe, fn, worker, lease_until, int(now)
  call('HSET', key, 's', '1', 'a', attempt, 'k', crashes, 'fe', fe, 'fn', fn, 'w', worker, 'l', lease_until, 'r', v[19],
    'rv', reservation)
  v[21] = id
  return v
end

local function renew(t, lease, progress)
  local ends = int(now + lease)
  if call('ZADD', LEASES, ends, t.id) == 1 then call('ZREM', READY .. t.q, rank(t)) end -- it had ended
  call('HSET', t.key, 'l', ends)
  if progress ~= '' then call('HSET', t.key, 'g', progress) end
end

-- What a reservation took whose answer was lost with the connection. Its leases begin anew.
local function again(worker, lease, reservation)
  local found = {}
  for _, id in ipairs(call('SMEMBERS', HELD .. worker)) do
    local key = TASK .. id
    if call('HGET', key, 'rv') == reservation then
      renew(load(id), lease, '')
      found[#found + 1] = call('HMGET', key, unpack(SHOWN))
      found[#found][21] = id
    end
  end
  return found
end

-- `i`: is it a repeat? The worker, its lease, how many, its record, its waiter, the reservation's name, its queues.
function ops.reserve(i, n)
  local is_repeat = ARGV[i] == '1'
  i, n = i + 1, n - 1
  local worker, lease, max, reservation = ARGV[i], tonumber(ARGV[i + 1]), tonumber(ARGV[i + 2]), ARGV[i + 5]
  call('HDEL', WAITING, ARGV[i + 4])
  keep_worker(worker, lease, ARGV[i + 3])
  tick()
  local found = is_repeat and again(worker, lease, reservation) or {}
  if #found > 0 then return found end
  local queues = n > 6 and { unpack(ARGV, i + 6, i + n - 1) } or call('SMEMBERS', QUEUES)
  queues = open(queues)
  local reserved, leases, ids, lease_until = {}, {}, {}, int(now + lease)
  while #queues > 0 and #reserved < max do
    local members = take(queues, math.min(max - #reserved, BATCH))
    for _, member in ipairs(members) do
      local id = string.sub(member, RANK + 1)
      local shown = run(id, worker, lease_until, reservation)
      if shown then
        reserved[#reserved + 1] = shown
        ids[#ids + 1] = id
        leases[#leases + 1] = lease_until
        leases[#leases + 1] = id
      end
    end
    if #members == 0 then break end
  end
  for from = 1, #ids, BATCH do
    local to = math.min(from + BATCH - 1, #ids)
    call('SADD', HELD .. worker, unpack(ids, from, to))
    call('ZADD', LEASES, unpack(leases, 2 * from - 1, 2 * to))
  end
  if #reserved == max then -- a wake-up may have gone to somebody who left: pass it on
    for _, name in ipairs(queues) do
      if not fresh[name] and call('EXISTS', READY .. name) == 1 then fresh[name] = 1 end
    end
  end
  return reserved
end

-- --- settle ----------------------------------------------------------------------------------------------------------

local ENDED = { 's', 'fe', 'fn', 'w', 'rt', 'u', 'uu', 'wt' } -- what the end of a running task needs

-- Take tasks that ran out of the sets they ran in, and into DONE: together, which saves a third of a settle.
local function move_ended(tasks)
  for from = 1, #tasks, BATCH do
    local ids, held, done = {}, {}, {}
    for k = from, math.min(from + BATCH - 1, #tasks) do
      local t = tasks[k]
      ids[#ids + 1] = t.id
      held[t.w] = held[t.w] or {}
      held[t.w][#held[t.w] + 1] = t.id
      done[#done + 1] = t.purge_at
      done[#done + 1] = t.id
    end
    for worker, of_worker in pairs(held) do call('SREM', HELD .. worker, unpack(of_worker)) end
    if call('ZREM', LEASES, unpack(ids)) < #ids then -- the lease of some has ended: ready for a takeover
      for _, id in ipairs(ids) do
        local t = load(id)
        call('ZREM', READY .. t.q, rank(t))
      end
    end
    call('ZADD', DONE, unpack(done))
  end
end

-- Complete or fail a task that has this fence; it is left to `move_ended`.
local function end_one(i, kind, tasks)
  local id = ARGV[i]
  local v = call('HMGET', TASK .. id, unpack(ENDED))
  if not v[1] or v[2] ~= ARGV[i + 1] or v[3] ~= ARGV[i + 2] then return 0 end
  if v[1] ~= '1' then return 1 end -- this fence has settled before
  local t = { id = id, key = TASK .. id, s = '1', w = v[4], rt = v[5], u = v[6], uu = v[7], wt = v[8] }
  t.purge_at = close(t, kind, ARGV[i + 5], 'e', ARGV[i + 6], 'v', ARGV[i + 7])
  tasks[#tasks + 1] = t
  return 1
end

-- Have a task run again that has this fence.
local function return_one(i, kind)
  local t = load(ARGV[i])
  if not t or t.fe ~= ARGV[i + 1] or t.fn ~= ARGV[i + 2] then return 0 end
  if t.s ~= '1' then return 1 end
  local delay, why = tonumber(ARGV[i + 4]), ARGV[i + 5]
  if t.cr == '1' then
    end_cancelled(t)
  elseif kind == 'released' then
    queue(t, delay, why, 'a', t.a - 1)
  elseif kind == 'crashed' then
    queue(t, delay, why, 'k', t.k + 1, 'sk', t.sk + 1)
  else
    queue(t, delay, why)
  end
  return 1
end

function ops.settle(i, n)
  tick()
  local answers, tasks = {}, {}
  for k = i, i + n - 1, 8 do
    local kind = ARGV[k + 3]
    local is_end = kind == '2' or kind == '3'
    answers[#answers + 1] = is_end and end_one(k, kind, tasks) or return_one(k, kind)
  end
  move_ended(tasks)
  return answers
end

-- --- leases ----------------------------------------------------------------------------------------------------------

function ops.extend(i, n)
  local worker, lease = ARGV[i], tonumber(ARGV[i + 1])
  local lost, asked, named = {}, {}, {}
  tick()
  keep_worker(worker, lease, ARGV[i + 2])
  for k = i + 3, i + n - 1, 4 do
    local id = ARGV[k]
    local t = load(id)
    named[id] = true
    if not t or t.s ~= '1' or t.fe ~= ARGV[k + 1] or t.fn ~= ARGV[k + 2] then
      lost[#lost + 1] = id
    else
      renew(t, lease, ARGV[k + 3])
      if t.cr == '1' then asked[#asked + 1] = id end
    end
  end
  for _, id in ipairs(call('SMEMBERS', HELD .. worker)) do
    if not named[id] then -- the reply to its reserve was never heard
      local t = load(id)
      if t and now - t.r > lease / 2 then
        if t.cr == '1' then end_cancelled(t) else queue(t, 0, '', 'a', t.a - 1) end
      end
    end
  end
  return { lost, asked }
end

function ops.abandon(i)
  local worker = ARGV[i]
  call('HDEL', WORKERS, worker)
  call('ZREM', SEEN, worker)
  local ids = call('SMEMBERS', HELD .. worker)
  for _, id in ipairs(ids) do
    local t = load(id)
    if t then
      call('ZREM', LEASES, id)
      call('HSET', t.key, 'l', int(now))
      push_ready(t)
    end
  end
  return #ids
end
