-- Adoption: the share of every version in every night, and its change since the run before.
-- Runs of a part of a fleet, and those without as many answers as required, are left out: their shares are of other
-- devices.
with inventory as (
    select i.*, r.started_at
    from {{ source('auditor', 'inventory') }} as i
    join {{ source('auditor', 'runs') }} as r on r.run = i.run
    where r.covers_fleet and r.state in ('complete', 'within_tolerance')
)

select
    audit, night, run, account, product_key, module_name, module_version, devices, share,
    share - lag(share) over (
        partition by audit, account, product_key, module_name, module_version order by started_at, run
    ) as share_change
from inventory
