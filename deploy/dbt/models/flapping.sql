-- Flapping: modules of devices whose version changed often in the last nights, and how often it returned to one that
-- the device had left before in these nights.
with newest as (
    select audit, max(night) as night from {{ source('auditor', 'runs') }} group by audit
),

version_changes as (
    select
        c.audit, c.night, c.account, c.product_key, c.device_name, c.iot_id, c.module_name, c.old_version,
        c.new_version, r.started_at,
        count(*) over (
            partition by c.audit, c.account, c.product_key, c.device_name, c.iot_id, c.module_name
        ) as changes
    from {{ source('auditor', 'changes') }} as c
    join {{ source('auditor', 'runs') }} as r on r.run = c.run
    join newest as n on n.audit = c.audit
    where c.night > n.night - {{ var('flapping_nights') }} and c.change in ('upgraded', 'downgraded', 'changed')
),

-- A change leaves a version, and then enters another one.
events as (
    select *, old_version as version, 0 as entered
    from version_changes where changes >= {{ var('flapping_changes') }}
    union all
    select *, new_version as version, 1 as entered
    from version_changes where changes >= {{ var('flapping_changes') }}
),

ordered as (
    select
        *,
        sum(1 - entered) over (
            partition by audit, account, product_key, device_name, iot_id, module_name, version
            order by started_at, entered rows between unbounded preceding and current row
        ) as left_before
    from events
)

select
    audit, account, product_key, device_name, iot_id, module_name,
    sum(entered) as changes,
    sum(case when entered = 1 and left_before > 0 then 1 else 0 end) as returns,
    count(distinct version) as versions,
    max(night) as last_changed
from ordered
group by audit, account, product_key, device_name, iot_id, module_name
