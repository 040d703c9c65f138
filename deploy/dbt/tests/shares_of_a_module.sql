-- The shares of the versions of a module add up to 1, but for rounding. A row is a module whose shares do not.
select run, account, product_key, module_name, sum(share) as share
from {{ source('auditor', 'inventory') }}
group by run, account, product_key, module_name
having abs(sum(share) - 1) > 0.0001
