#!/usr/bin/env bash
# The Connect protocol is plain HTTP with JSON.
set -euo pipefail
address="${1:-127.0.0.1:8080}"
database="curl-$$"

call() { # method, body
  curl --silent --show-error --fail-with-body --header 'content-type: application/json' \
    --data "$2" "http://$address/persisto.v1.DatabaseService/$1"
  echo
}

call CreateDatabase "{\"database\": \"$database\"}"
call ExecuteScript "{\"database\": \"$database\", \"script\": \"CREATE TABLE city (name TEXT, people INTEGER); CREATE INDEX by_people ON city (people);\"}"
call Execute "{\"database\": \"$database\", \"statement\": {
  \"sql\": \"INSERT INTO city VALUES (?, ?), (?, ?)\",
  \"parameters\": [{\"text\": \"Lisbon\"}, {\"integer\": \"567131\"}, {\"text\": \"Porto\"}, {\"integer\": \"248769\"}]}}"
call Read "{\"database\": \"$database\", \"statement\": {
  \"sql\": \"SELECT name, people FROM city WHERE people > :least ORDER BY people DESC\",
  \"namedParameters\": {\"least\": {\"integer\": \"100000\"}}}}"
call DeleteDatabase "{\"database\": \"$database\"}"
