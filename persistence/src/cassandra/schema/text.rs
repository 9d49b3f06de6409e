//! The schema as text. A change is a new [`Migration`]; one that was released is never edited.
//!
//! `{ks}` stands for the keyspace. Options that follow for all tables, and why:
//!
//! - `read_repair = 'BLOCKING'`: a QUORUM read that saw a value makes the next one see it, too (G1). Checked at each start.
//! - `default_time_to_live = 0`: the log and the rows of ownership never expire by themselves. Checked at each start.
//! - `gc_grace_seconds` stays ten days where a deletion that a replica missed would bring back something that is read:
//!   repairs have to run at least that often, as for any Cassandra table.

/// Bound to the name of the keyspace before anything else: coordinates all that follows.
///
/// `birth` is a random id, decided once by LWT; ids of tables are derived from it. `lease` is held by who changes the schema,
/// and expires. `version` is the last migration that is complete.
pub(super) const STATE_TABLE: &str = "CREATE TABLE IF NOT EXISTS {ks}.schema_state (
    name text PRIMARY KEY,
    holder uuid,
    version int
) WITH read_repair = 'BLOCKING' AND comment = 'Perdure: who may change the schema, and which version it has'";

/// A step of the schema.
pub(super) struct Migration {
    pub version: i32,
    pub statements: &'static [Step],
}

pub(super) enum Step {
    /// `CREATE TABLE IF NOT EXISTS {ks}.<name>`: columns, options.
    Table { name: &'static str, columns: &'static str, options: &'static [&'static str] },
}

/// Rewritten in place, few, read by key: levels keep a read at one or two files.
const SMALL: &str = "compaction = {'class': 'LeveledCompactionStrategy'}";

/// Written once or a few times, read by key.
const BULK: &str = "compaction = {'class': 'SizeTieredCompactionStrategy'}";

/// Rows that come and go: files that are mostly tombstones are compacted alone, without waiting for three like them.
const CHURN: &str = "compaction = {'class': 'SizeTieredCompactionStrategy', 'unchecked_tombstone_compaction': 'true', \
                     'tombstone_compaction_interval': '3600', 'tombstone_threshold': '0.2'}";

/// The newest version that this program knows.
pub(super) const VERSION: i32 = 2;

pub(super) const MIGRATIONS: &[Migration] =
    &[Migration { version: 1, statements: V1 }, Migration { version: 2, statements: V2 }];

const V1: &[Step] = &[
    // Settings fixed at creation. LWT only.
    Step::Table {
        name: "cluster",
        columns: "key text PRIMARY KEY, cluster_id text, slots int, schema_version int",
        options: &[SMALL],
    },
    // One partition: the whole registry is read at once, and changes seldom. LWT only.
    Step::Table {
        name: "namespaces",
        columns: "registry tinyint, name text, id text, version bigint, record blob, PRIMARY KEY (registry, name)",
        options: &[SMALL],
    },
    // One partition, read at once. Rows expire, and are written anew each second while their node lives.
    Step::Table {
        name: "members",
        columns: "registry tinyint, node text, name text, address text, generation bigint, beat bigint, session uuid, \
                  PRIMARY KEY (registry, node)",
        options: &[SMALL, "gc_grace_seconds = 3600"],
    },
    // A partition each, so that the fence reads of many nodes don't meet on the same replicas. LWT only (G4).
    Step::Table {
        name: "sessions",
        columns: "session_id uuid PRIMARY KEY, state tinyint, sealed_at bigint, base bigint, base_segment int",
        options: &[SMALL],
    },
    // LWT only (G4). `sources`: epoch:session:from:until, comma-separated.
    Step::Table {
        name: "shards",
        columns: "shard_id int PRIMARY KEY, owner uuid, epoch bigint, checkpoint_epoch bigint, checkpoint_seq bigint, \
                  sources text",
        options: &[SMALL],
    },
    // A segment is a partition of 16 MiB or 65,536 rows at most (the log's writer rolls it), written once, read only by
    // a recovery, deleted whole minutes later (M3): most segments die in the memtable. A day of grace outlasts the hints
    // of the deletion; what surfaces after it lies below the base of its session, or has none, and is never read. No
    // TTL: a log outlives any outage. Nothing of it is worth a cache; bloom filters only have to tell segments apart.
    Step::Table {
        name: "node_log",
        columns: "session_id uuid, segment int, seq bigint, acknowledged bigint, bytes int, checksum int, records blob, \
                  PRIMARY KEY ((session_id, segment), seq)",
        options: &[
            CHURN,
            "gc_grace_seconds = 86400",
            "caching = {'keys': 'NONE', 'rows_per_partition': 'NONE'}",
            "bloom_filter_fp_chance = 0.1",
        ],
    },
    // Head (run_id '') and runs of an entity; the head is a row and no static column, since to read static columns is to
    // look for the first live row, past all that were deleted. Point reads only.
    Step::Table {
        name: "executions",
        columns: "namespace_id text, kind tinyint, entity_id text, run_id text, applied_epoch bigint, applied_seq bigint, \
                  wakes boolean, wake_at bigint, snapshot blob, PRIMARY KEY ((namespace_id, kind, entity_id), run_id)",
        options: &[BULK],
    },
    // A partition is one run's events, bounded by the limits of a history (50,000 events, 50 MiB), and deleted whole.
    Step::Table {
        name: "history",
        columns: "namespace_id text, kind tinyint, entity_id text, run_id text, first_event_id bigint, \
                  last_event_id bigint, events blob, \
                  PRIMARY KEY ((namespace_id, kind, entity_id, run_id), first_event_id)",
        options: &[BULK],
    },
    // See `wakeups.rs` for the buckets.
    Step::Table {
        name: "wakeups",
        columns: "shard_id int, bucket bigint, wake_at bigint, kind tinyint, namespace_id text, entity_id text, \
                  run_id text, PRIMARY KEY ((shard_id, bucket), wake_at, kind, namespace_id, entity_id, run_id)",
        options: &[CHURN],
    },
    Step::Table {
        name: "wakeup_buckets",
        columns: "shard_id int, bucket bigint, PRIMARY KEY (shard_id, bucket)",
        options: &[SMALL],
    },
    // LWT only.
    Step::Table {
        name: "wakeup_floor",
        columns: "shard_id int PRIMARY KEY, epoch bigint, bucket bigint",
        options: &[SMALL],
    },
    // The list of runs; see `visibility.rs`. Hours, days and months bound the partitions.
    Step::Table {
        name: "visibility_rows",
        columns: "list_id text, closed boolean, bucket bigint, at bigint, run_id text, workflow_id text, \
                  workflow_type text, status tinyint, start_time bigint, hidden boolean, made_at bigint, \
                  keywords frozen<list<frozen<tuple<text, text>>>>, info blob, \
                  PRIMARY KEY ((list_id, closed, bucket), at, run_id)",
        options: &["CLUSTERING ORDER BY (at DESC, run_id ASC)", CHURN],
    },
    Step::Table {
        name: "visibility_index",
        columns: "list_id text, facet text, closed boolean, bucket bigint, at bigint, run_id text, workflow_id text, \
                  PRIMARY KEY ((list_id, facet, closed, bucket), at, run_id)",
        options: &["CLUSTERING ORDER BY (at DESC, run_id ASC)", CHURN],
    },
    Step::Table {
        name: "visibility_ids",
        columns: "list_id text, day bigint, workflow_id text, run_id text, closed boolean, at bigint, \
                  PRIMARY KEY ((list_id, day), workflow_id, run_id)",
        options: &[BULK],
    },
    Step::Table {
        name: "visibility_buckets",
        columns: "list_id text, facet text, closed boolean, bucket bigint, \
                  PRIMARY KEY ((list_id, facet, closed), bucket)",
        options: &["CLUSTERING ORDER BY (bucket DESC)", SMALL],
    },
];

const V2: &[Step] = &[Step::Table {
    name: "visibility_runs",
    columns: "list_id text, day bigint, run_id text, closed boolean, at bigint, PRIMARY KEY ((list_id, day), run_id)",
    options: &[BULK],
}];

/// The names of all tables.
pub(super) fn tables() -> impl Iterator<Item = &'static str> {
    let steps = MIGRATIONS.iter().flat_map(|migration| migration.statements);
    std::iter::once("schema_state").chain(steps.map(|Step::Table { name, .. }| *name))
}

/// The statement, for the keyspace placeholder `{ks}`. `id` makes it the same for whoever runs it.
pub(super) fn statement(step: &Step, id: Option<uuid::Uuid>) -> String {
    let Step::Table { name, columns, options } = step;
    let options = options.iter().chain(&["read_repair = 'BLOCKING'"]).map(|option| (*option).to_owned());
    let options: Vec<String> = options.chain(id.map(|id| format!("ID = {id}"))).collect();
    format!("CREATE TABLE IF NOT EXISTS {{ks}}.{name} ({columns}) WITH {}", options.join(" AND "))
}

/// The keyspace. Replicas are counted a data centre: a local one alone, or each that there is when it is created.
pub(super) fn keyspace(local_datacenter: Option<&str>, replication_factor: u32) -> String {
    let datacenter = local_datacenter.unwrap_or("replication_factor");
    format!(
        "CREATE KEYSPACE IF NOT EXISTS {{ks}} WITH replication = {{'class': 'NetworkTopologyStrategy', \
         '{datacenter}': {replication_factor}}} AND durable_writes = true"
    )
}
