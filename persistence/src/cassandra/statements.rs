//! All statements, prepared once. Each names its consistency (G1) when it is prepared; what stamps it carries is in its
//! text, so that no row is ever written with a time of the driver's or the coordinator's.

use scylla::statement::prepared::PreparedStatement;

use super::cql::Cql;
use crate::Result;

macro_rules! statements {
    ($($name:ident: $how:ident = $text:expr;)*) => {
        #[derive(Debug)]
        pub(super) struct Statements { $(pub $name: PreparedStatement),* }

        impl Statements {
            /// Boxed: together they are tens of kilobytes, too much to move about on a stack.
            pub async fn prepare(cql: &Cql) -> Result<Box<Self>> {
                let ($($name),*) = futures::try_join!($(Box::pin(cql.$how($text))),*)?;
                Ok(Box::new(Self { $($name),* }))
            }
        }
    };
}

statements! {
    // Rows of ownership and settings: written by LWT only (G4).
    create_settings: prepare_conditional =
        "INSERT INTO {ks}.cluster (key, cluster_id, slots, schema_version) VALUES ('settings', ?, ?, ?) IF NOT EXISTS";
    read_goal: prepare = "SELECT slots FROM {ks}.cluster WHERE key = 'goal'";
    create_goal: prepare_conditional = "INSERT INTO {ks}.cluster (key, slots) VALUES ('goal', ?) IF NOT EXISTS";
    move_goal: prepare_conditional = "UPDATE {ks}.cluster SET slots = ? WHERE key = 'goal' IF slots = ?";
    list_namespaces: prepare = "SELECT name, id, version, record FROM {ks}.namespaces WHERE registry = 0";
    create_namespace: prepare_conditional =
        "INSERT INTO {ks}.namespaces (registry, name, id, version, record) VALUES (0, ?, ?, ?, ?) IF NOT EXISTS";
    update_namespace: prepare_conditional =
        "UPDATE {ks}.namespaces SET id = ?, version = ?, record = ? WHERE registry = 0 AND name = ? IF version = ?";
    read_namespace: prepare_serial_read =
        "SELECT name, id, version, record FROM {ks}.namespaces WHERE registry = 0 AND name = ?";

    // Signs of life: no protocol stands on them, so they carry the time of the write.
    put_member: prepare =
        "INSERT INTO {ks}.members (registry, node, name, address, generation, beat, session) \
         VALUES (0, ?, ?, ?, ?, ?, ?) USING TTL ?";
    list_members: prepare =
        "SELECT node, name, address, generation, beat, session FROM {ks}.members WHERE registry = 0";
    delete_member: prepare = "DELETE FROM {ks}.members WHERE registry = 0 AND node = ?";

    list_sessions: prepare = "SELECT session_id, state, sealed_at, base, base_segment FROM {ks}.sessions";
    // The fence read (A3).
    read_session: prepare =
        "SELECT session_id, state, sealed_at, base, base_segment FROM {ks}.sessions WHERE session_id = ?";
    read_session_serial: prepare_serial_read =
        "SELECT session_id, state, sealed_at, base, base_segment FROM {ks}.sessions WHERE session_id = ?";
    create_session: prepare_conditional =
        "INSERT INTO {ks}.sessions (session_id, state, sealed_at, base, base_segment) VALUES (?, ?, ?, ?, ?) IF NOT EXISTS";
    update_session: prepare_conditional =
        "UPDATE {ks}.sessions SET state = ?, sealed_at = ?, base = ?, base_segment = ? WHERE session_id = ? \
         IF state = ? AND sealed_at = ? AND base = ? AND base_segment = ?";
    delete_session: prepare_conditional =
        "DELETE FROM {ks}.sessions WHERE session_id = ? IF state = ? AND sealed_at = ? AND base = ? AND base_segment = ?";

    list_shards: prepare =
        "SELECT shard_id, owner, epoch, checkpoint_epoch, checkpoint_seq, sources FROM {ks}.shards";
    read_shard: prepare_serial_read =
        "SELECT shard_id, owner, epoch, checkpoint_epoch, checkpoint_seq, sources FROM {ks}.shards WHERE shard_id = ?";
    create_shard: prepare_conditional =
        "INSERT INTO {ks}.shards (shard_id, owner, epoch, checkpoint_epoch, checkpoint_seq, sources) \
         VALUES (?, ?, ?, ?, ?, ?) IF NOT EXISTS";
    update_shard: prepare_conditional =
        "UPDATE {ks}.shards SET owner = ?, epoch = ?, checkpoint_epoch = ?, checkpoint_seq = ?, sources = ? \
         WHERE shard_id = ? \
         IF owner = ? AND epoch = ? AND checkpoint_epoch = ? AND checkpoint_seq = ? AND sources = ?";

    // The log. Rows carry timestamp 1, the deletion of their segment 2: an insert that comes late stays invisible (M3), and
    // a repeated one is the same cell (G2).
    append: prepare =
        "INSERT INTO {ks}.node_log (session_id, segment, seq, acknowledged, bytes, checksum, records) \
         VALUES (?, ?, ?, ?, ?, ?, ?) USING TIMESTAMP 1";
    size_log: prepare =
        "SELECT seq, bytes FROM {ks}.node_log WHERE session_id = ? AND segment = ? AND seq >= ? LIMIT 2048";
    read_log: prepare =
        "SELECT seq, acknowledged, checksum, records FROM {ks}.node_log \
         WHERE session_id = ? AND segment = ? AND seq >= ? AND seq <= ?";
    delete_segment: prepare =
        "DELETE FROM {ks}.node_log USING TIMESTAMP 2 WHERE session_id = ? AND segment = ?";

    // Materialized rows: always whole, always `USING TIMESTAMP` the position that they reflect, deletions too (M1).
    put_execution: prepare =
        "INSERT INTO {ks}.executions (namespace_id, kind, entity_id, run_id, applied_epoch, applied_seq, wakes, wake_at, \
         snapshot) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) USING TIMESTAMP ?";
    delete_execution: prepare =
        "DELETE FROM {ks}.executions USING TIMESTAMP ? \
         WHERE namespace_id = ? AND kind = ? AND entity_id = ? AND run_id = ?";
    read_execution: prepare =
        "SELECT applied_epoch, applied_seq, wakes, wake_at, snapshot FROM {ks}.executions \
         WHERE namespace_id = ? AND kind = ? AND entity_id = ? AND run_id = ?";
    read_executions: prepare =
        "SELECT run_id, applied_epoch, applied_seq, wakes, wake_at, snapshot FROM {ks}.executions \
         WHERE namespace_id = ? AND kind = ? AND entity_id = ? AND run_id IN ?";

    put_history: prepare =
        "INSERT INTO {ks}.history (namespace_id, kind, entity_id, run_id, first_event_id, last_event_id, events) \
         VALUES (?, ?, ?, ?, ?, ?, ?) USING TIMESTAMP ?";
    delete_history: prepare =
        "DELETE FROM {ks}.history USING TIMESTAMP ? \
         WHERE namespace_id = ? AND kind = ? AND entity_id = ? AND run_id = ?";
    history_row_of: prepare =
        "SELECT first_event_id FROM {ks}.history WHERE namespace_id = ? AND kind = ? AND entity_id = ? AND run_id = ? \
         AND first_event_id <= ? ORDER BY first_event_id DESC LIMIT 1";
    read_history: prepare =
        "SELECT first_event_id, last_event_id, events FROM {ks}.history WHERE namespace_id = ? AND kind = ? \
         AND entity_id = ? AND run_id = ? AND first_event_id >= ? AND first_event_id <= ?";
    read_history_back: prepare =
        "SELECT first_event_id, last_event_id, events FROM {ks}.history WHERE namespace_id = ? AND kind = ? \
         AND entity_id = ? AND run_id = ? AND first_event_id >= ? AND first_event_id <= ? ORDER BY first_event_id DESC";

    put_wakeup: prepare =
        "INSERT INTO {ks}.wakeups (shard_id, bucket, wake_at, kind, namespace_id, entity_id, run_id) \
         VALUES (?, ?, ?, ?, ?, ?, ?) USING TIMESTAMP ?";
    delete_wakeup: prepare =
        "DELETE FROM {ks}.wakeups USING TIMESTAMP ? WHERE shard_id = ? AND bucket = ? AND wake_at = ? AND kind = ? \
         AND namespace_id = ? AND entity_id = ? AND run_id = ?";
    read_wakeups: prepare =
        "SELECT wake_at, kind, namespace_id, entity_id, run_id FROM {ks}.wakeups \
         WHERE shard_id = ? AND bucket = ? AND (wake_at) >= (?) AND (wake_at) <= (?) LIMIT ?";
    read_wakeups_after: prepare =
        "SELECT wake_at, kind, namespace_id, entity_id, run_id FROM {ks}.wakeups \
         WHERE shard_id = ? AND bucket = ? AND (wake_at, kind, namespace_id, entity_id, run_id) > (?, ?, ?, ?, ?) \
         AND (wake_at) <= (?) LIMIT ?";
    // Nothing of a bucket below the floor is read or written again, whatever its stamp.
    drop_bucket: prepare =
        "DELETE FROM {ks}.wakeups USING TIMESTAMP 9223372036854775807 WHERE shard_id = ? AND bucket = ?";

    // The directory only grows (timestamp 1), and is cut off below the floor (timestamp 2).
    put_bucket: prepare = "INSERT INTO {ks}.wakeup_buckets (shard_id, bucket) VALUES (?, ?) USING TIMESTAMP 1";
    read_buckets: prepare =
        "SELECT bucket FROM {ks}.wakeup_buckets WHERE shard_id = ? AND bucket >= ? AND bucket <= ? LIMIT ?";
    cut_buckets: prepare = "DELETE FROM {ks}.wakeup_buckets USING TIMESTAMP 2 WHERE shard_id = ? AND bucket < ?";

    read_floor: prepare = "SELECT epoch, bucket FROM {ks}.wakeup_floor WHERE shard_id = ?";
    read_floor_serial: prepare_serial_read = "SELECT epoch, bucket FROM {ks}.wakeup_floor WHERE shard_id = ?";
    create_floor: prepare_conditional =
        "INSERT INTO {ks}.wakeup_floor (shard_id, epoch, bucket) VALUES (?, ?, ?) IF NOT EXISTS";
    move_floor: prepare_conditional =
        "UPDATE {ks}.wakeup_floor SET epoch = ?, bucket = ? WHERE shard_id = ? IF epoch = ? AND bucket = ?";

    // The list of runs; see `visibility.rs`.
    put_visibility: prepare =
        "INSERT INTO {ks}.visibility_rows (list_id, closed, bucket, at, run_id, workflow_id, workflow_type, status, \
         start_time, hidden, made_at, keywords, info) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) USING TIMESTAMP ?";
    delete_visibility: prepare =
        "DELETE FROM {ks}.visibility_rows USING TIMESTAMP ? \
         WHERE list_id = ? AND closed = ? AND bucket = ? AND at = ? AND run_id = ?";
    read_visibility: prepare_paged =
        "SELECT at, run_id, workflow_id, workflow_type, status, start_time, hidden, made_at, keywords, info \
         FROM {ks}.visibility_rows WHERE list_id = ? AND closed = ? AND bucket = ? AND at <= ? AND at >= ?";
    read_visibility_named: prepare =
        "SELECT at, run_id, workflow_id, workflow_type, status, start_time, hidden, made_at, keywords, info \
         FROM {ks}.visibility_rows WHERE list_id = ? AND closed = ? AND bucket = ? AND (at, run_id) IN ?";
    count_visibility: prepare =
        "SELECT workflow_type, status, hidden FROM {ks}.visibility_rows WHERE list_id = ? AND closed = ? AND bucket = ?";
    put_visibility_entry: prepare =
        "INSERT INTO {ks}.visibility_index (list_id, facet, closed, bucket, at, run_id, workflow_id) \
         VALUES (?, ?, ?, ?, ?, ?, ?) USING TIMESTAMP ?";
    delete_visibility_entry: prepare =
        "DELETE FROM {ks}.visibility_index USING TIMESTAMP ? \
         WHERE list_id = ? AND facet = ? AND closed = ? AND bucket = ? AND at = ? AND run_id = ?";
    read_visibility_entries: prepare_paged =
        "SELECT at, run_id FROM {ks}.visibility_index \
         WHERE list_id = ? AND facet = ? AND closed = ? AND bucket = ? AND at <= ? AND at >= ?";
    put_visibility_id: prepare =
        "INSERT INTO {ks}.visibility_ids (list_id, day, workflow_id, run_id, closed, at) \
         VALUES (?, ?, ?, ?, ?, ?) USING TIMESTAMP ?";
    delete_visibility_id: prepare =
        "DELETE FROM {ks}.visibility_ids USING TIMESTAMP ? \
         WHERE list_id = ? AND day = ? AND workflow_id = ? AND run_id = ?";
    read_visibility_ids: prepare_paged =
        "SELECT workflow_id, run_id, closed, at FROM {ks}.visibility_ids \
         WHERE list_id = ? AND day = ? AND workflow_id >= ?";
    put_visibility_run: prepare =
        "INSERT INTO {ks}.visibility_runs (list_id, day, run_id, closed, at) VALUES (?, ?, ?, ?, ?) USING TIMESTAMP ?";
    delete_visibility_run: prepare =
        "DELETE FROM {ks}.visibility_runs USING TIMESTAMP ? WHERE list_id = ? AND day = ? AND run_id = ?";
    read_visibility_run: prepare =
        "SELECT closed, at FROM {ks}.visibility_runs WHERE list_id = ? AND day = ? AND run_id = ?";
    put_visibility_bucket: prepare =
        "INSERT INTO {ks}.visibility_buckets (list_id, facet, closed, bucket) VALUES (?, ?, ?, ?) USING TIMESTAMP 1";
    read_visibility_buckets: prepare =
        "SELECT bucket FROM {ks}.visibility_buckets \
         WHERE list_id = ? AND facet = ? AND closed = ? AND bucket >= ? AND bucket <= ? LIMIT ?";
}
