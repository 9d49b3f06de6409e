//! The schema: shown, created, migrated, checked.
//!
//! Cassandra does not serialize schema changes: two nodes that create one table at once may give it two ids. So:
//!
//! 1. *Bootstrap.* Every node may create the keyspace and `schema_state`. Both are safe to race: keyspaces have no id, and
//!    this table's id is derived from the keyspace's name, so that all racers write the same.
//! 2. A *birth id* is decided by LWT. The ids of all other tables are derived from it: even a holder of the lease who
//!    slept past its end and goes on repeats what its successor does, to the letter.
//! 3. The *lease* ([`lease`]) makes one node at a time run the missing migrations; others wait, and look again.
//! 4. A migration's version is written by LWT after all its statements, and after all nodes agreed on the schema.
//!
//! A keyspace with a newer version than this program knows is refused.

mod apply;
mod lease;
mod text;

pub(super) use apply::{ensure, patiently};

use super::config::CassandraConfig;

/// The names of all tables.
pub(super) fn tables() -> impl Iterator<Item = &'static str> {
    text::tables()
}

/// The whole schema for a keyspace, as CQL that may be run by hand (once, by one person) in place of the server.
pub fn render(config: &CassandraConfig) -> String {
    let keyspace = text::keyspace(config.local_datacenter.as_deref(), config.replication_factor);
    let mut statements = vec![keyspace, text::STATE_TABLE.to_owned()];
    for migration in text::MIGRATIONS {
        statements.push(format!("-- version {}", migration.version));
        statements.extend(migration.statements.iter().map(|step| text::statement(step, None)));
    }
    statements.push(format!(
        "INSERT INTO {{ks}}.schema_state (name, version) VALUES ('version', {}) IF NOT EXISTS",
        text::VERSION
    ));
    let name = format!("\"{}\"", config.keyspace);
    let end = |text: String| if text.starts_with("--") { text } else { text + ";" };
    statements.into_iter().map(|text| end(text.replace("{ks}", &name)) + "\n").collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rendered_schema_names_every_table() {
        let text = render(&CassandraConfig { keyspace: "k".into(), ..CassandraConfig::default() });
        assert!(text.starts_with("CREATE KEYSPACE IF NOT EXISTS \"k\" WITH replication"));
        for table in tables() {
            assert!(text.contains(&format!("\"k\".{table} (")), "{table}");
        }
        assert!(!text.contains("{ks}"));
    }

    #[test]
    fn versions_count_up() {
        let versions: Vec<i32> = text::MIGRATIONS.iter().map(|migration| migration.version).collect();
        assert_eq!(versions, (1..=text::VERSION).collect::<Vec<_>>());
    }
}
