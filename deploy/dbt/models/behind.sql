-- Behind: products' modules with devices that do not run the target version, in the newest successful run of
-- each audit.
with newest as (
    select run, row_number() over (partition by audit order by started_at desc, run desc) as place
    from {{ source('auditor', 'runs') }}
    where covers_fleet and state in ('complete', 'within_tolerance')
)

select
    r.audit, r.night, r.run, r.account, r.product_key, r.product_name, r.module_name, r.target, r.state, r.devices,
    r.behind, cast(r.behind as double precision) / nullif(r.devices, 0) as share_behind, r.failed, r.offered,
    r.reverted, r.never_offered, r.runs_in_state, r.expected_at
from {{ source('auditor', 'rollouts') }} as r
join newest as n on n.run = r.run
where n.place = 1 and r.behind > 0
