#!/usr/bin/env bash
# What the user `tailwater` needs on a Kafka cluster, and no more. Run it with Kafka's own tool on the path:
#
#   deploy/grants/kafka.sh --bootstrap-server broker:9092 --command-config admin.properties
#
# `lms.` stands for the topics of your source (the default name is {source}.{schema}.{table}), `tailwater-` for every
# transactional id that the daemon uses (tailwater-SINK-SOURCE…), `tailwater.state` for `state_topic`, with which the names of the
# state topics begin (tailwater.state-SINK-SOURCE).
set -euo pipefail

user=${TAILWATER_KAFKA_USER:-User:tailwater}
topics=${TAILWATER_KAFKA_TOPICS:-lms.}
state=${TAILWATER_KAFKA_STATE:-tailwater.state}
heartbeats=${TAILWATER_KAFKA_HEARTBEATS:-__debezium-heartbeat.}

# The topics of the source's tables. DescribeConfigs: asked for max.message.bytes when a message is refused for its length. Read:
# where brokers left a transaction open (KAFKA-20734), its first message tells whether it was committed.
kafka-acls.sh "$@" --add --allow-principal "$user" \
    --operation Write --operation Describe --operation DescribeConfigs --operation Read --topic "$topics" --resource-pattern-type prefixed
# Only with `heartbeat_interval`; `lms.transaction`, of `provide_transaction_metadata`, is among those above.
kafka-acls.sh "$@" --add --allow-principal "$user" \
    --operation Write --operation Describe --topic "$heartbeats" --resource-pattern-type prefixed
# Checkpoints and table states: written with the changes, read at each start, by no consumer group. DescribeConfigs: whether the
# topic is compacted, as it must be.
kafka-acls.sh "$@" --add --allow-principal "$user" \
    --operation Write --operation Read --operation Describe --operation DescribeConfigs --topic "$state" --resource-pattern-type prefixed
# One transactional id for a source's changes, one for its copies, one for its table states.
kafka-acls.sh "$@" --add --allow-principal "$user" \
    --operation Write --operation Describe --transactional-id tailwater- --resource-pattern-type prefixed

# Only if `tailwater setup --create-targets` runs under this user too; else make the topics beforehand.
# kafka-acls.sh "$@" --add --allow-principal "$user" --operation Create --cluster
