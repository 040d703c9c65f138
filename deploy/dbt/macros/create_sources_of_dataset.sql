{# In DuckDB, define the sources as views over a dataset that auditor publishes to files, if the variable `dataset` names one.

   Only files that runs/ names are read: those of a run that is being published are not named yet. #}
{% macro create_sources_of_dataset() %}
  {% if target.type == 'duckdb' and var('dataset') and execute %}
    {% set schema, dataset = var('auditor_schema'), sql_read_path(var('dataset')) %}
    {% set documents = "read_json('" ~ dataset ~ "/runs/*.json', maximum_object_size = 16777216, columns = {" ~ dataset_columns('runs') ~ ", files: 'STRUCT(key VARCHAR, \"table\" VARCHAR)[]'})" %}
    {% do run_query("create schema if not exists " ~ schema) %}
    {% do run_query("create or replace view " ~ schema ~ ".runs as select * exclude (files) from " ~ documents) %}
    {% for table in ('devices', 'modules', 'inventory', 'rollouts', 'changes') %}
      {% set found = run_query("select file.key from (select unnest(files) as file from " ~ documents ~ ") where file.\"table\" = '" ~ table ~ "'") %}
      {% set files = [] %}
      {% for key in found.columns[0].values() %}
        {% do files.append("'" ~ dataset ~ "/" ~ sql_read_path(key) ~ "'") %}
      {% endfor %}
      {% set columns = [] %}
      {% for name, type in dataset_types(table).items() %}
        {% do columns.append((name if files else "null") ~ "::" ~ type ~ " as " ~ name) %}
      {% endfor %}
      {% set rows = "read_parquet([" ~ files | join(', ') ~ "], hive_partitioning = true, hive_types_autocast = false)" if files else "(select 1) where false" %}
      {% do run_query("create or replace view " ~ schema ~ "." ~ table ~ " as select " ~ columns | join(', ') ~ " from " ~ rows) %}
    {% endfor %}
  {% endif %}
{% endmacro %}

{% macro dataset_columns(table) %}
  {%- for name, type in dataset_types(table).items() -%}
    {{ name }}: '{{ type }}'{{ ", " if not loop.last }}
  {%- endfor -%}
{% endmacro %}

{# A path inside an SQL literal; DuckDB takes *, ? and [ for a pattern. #}
{% macro sql_read_path(path) %}
  {{- return(modules.re.sub("([][*?])", "[\\1]", path) | replace("'", "''")) -}}
{% endmacro %}
