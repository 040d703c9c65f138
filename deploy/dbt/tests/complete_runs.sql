-- Every run has all of its rows, and its inventory counts its modules. A row is a run that lacks some.
-- Runs without any row in devices that are older than `retention_nights` days are skipped: their rows were deleted.
with devices as (
    select run, count(*) as devices, sum(modules) as modules from {{ source('auditor', 'devices') }} group by run
),

modules as (select run, count(*) as modules from {{ source('auditor', 'modules') }} group by run),

inventory as (select run, sum(devices) as modules from {{ source('auditor', 'inventory') }} group by run)

select r.run, r.devices, d.devices as stored_devices, d.modules, m.modules as stored_modules, i.modules as counted
from {{ source('auditor', 'runs') }} as r
left join devices as d on d.run = r.run
left join modules as m on m.run = r.run
left join inventory as i on i.run = r.run
where (d.run is not null or r.night >= current_date - {{ var('retention_nights') }}) and (
    r.devices <> coalesce(d.devices, 0) or r.devices <> r.ok + r.empty + r.not_found + r.failed + r.pending
    or coalesce(d.modules, 0) <> coalesce(m.modules, 0) or coalesce(m.modules, 0) <> coalesce(i.modules, 0)
)
