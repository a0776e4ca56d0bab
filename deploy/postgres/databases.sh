#!/bin/sh
# One database and one role for each of Airflow, MLflow and the tuning studies; none can open another's.
set -eu
for name in airflow mlflow tuning; do
  password=$(printenv "$(echo "$name" | tr '[:lower:]' '[:upper:]')_PASSWORD")
  psql --set ON_ERROR_STOP=1 --set name="$name" --set password="$password" --quiet --username postgres --dbname postgres <<'SQL'
CREATE ROLE :"name" LOGIN PASSWORD :'password';
CREATE DATABASE :"name" OWNER :"name" TEMPLATE template0 ENCODING 'UTF8';
REVOKE CONNECT ON DATABASE :"name" FROM PUBLIC;
SQL
done
