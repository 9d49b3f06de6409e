//! What the commit protocol takes for granted of a keyspace, checked at each start: quorums meet, acknowledged writes stay,
//! Paxos is linearizable. Settings under which that is not so are refused, with what to do about them.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use scylla::policies::load_balancing::{NodeIdentifier, SingleTargetLoadBalancingPolicy};

use super::{
    config::{CassandraConfig, ConnectError},
    cql::Cql,
    schema,
};

/// How a keyspace is replicated, as Cassandra describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Replication {
    class: String,
    /// By data centre; `replication_factor` for SimpleStrategy.
    factors: BTreeMap<String, String>,
    durable_writes: bool,
}

/// Options of a table that the protocol depends on.
struct TableOptions {
    name: String,
    read_repair: Option<String>,
    default_ttl: Option<i32>,
}

/// Refuses an unsafe keyspace; logs what is safe and still unwise.
pub(super) async fn check(cql: &Cql, config: &CassandraConfig) -> Result<(), ConnectError> {
    let refuse = |reason: String| ConnectError::Unsafe { keyspace: config.keyspace.clone(), reason };
    let unreadable = |reason: String| ConnectError::Schema { keyspace: config.keyspace.clone(), reason };
    let replication = read_replication(cql).await.map_err(unreadable)?;
    let datacenters = datacenters(cql);
    let warnings = judge_replication(&replication, config.local_datacenter.as_deref(), &datacenters).map_err(refuse)?;
    for warning in warnings {
        tracing::warn!(keyspace = config.keyspace, "{warning}");
    }
    for table in read_tables(cql).await.map_err(unreadable)? {
        judge_table(&table).map_err(refuse)?;
    }
    for (address, settings) in read_settings(cql).await {
        for warning in judge_settings(&settings).map_err(|reason| refuse(format!("node {address}: {reason}")))? {
            tracing::info!(node = address, "{warning}");
        }
    }
    Ok(())
}

fn datacenters(cql: &Cql) -> BTreeSet<String> {
    let state = cql.session.get_cluster_state();
    state.get_nodes_info().iter().filter_map(|node| node.datacenter.clone()).collect()
}

/// Warnings, or why quorums of this keyspace need not meet.
fn judge_replication(
    replication: &Replication,
    local: Option<&str>,
    datacenters: &BTreeSet<String>,
) -> Result<Vec<String>, String> {
    if !replication.durable_writes {
        return Err(
            "durable_writes is off: a crash loses acknowledged writes. ALTER KEYSPACE … AND durable_writes = true"
                .into(),
        );
    }
    let mut factors = BTreeMap::new();
    for (datacenter, factor) in &replication.factors {
        if factor.contains('/') {
            return Err(format!(
                "transient replication ('{datacenter}': '{factor}') is not supported: use full replicas only"
            ));
        }
        let number: u32 =
            factor.parse().map_err(|_| format!("replication '{datacenter}': '{factor}' is not understood"))?;
        if number > 0 {
            factors.insert(datacenter.as_str(), number);
        }
    }
    let class = replication.class.rsplit('.').next().unwrap_or_default();
    match (class, local) {
        ("SimpleStrategy", None) => {}
        ("SimpleStrategy", Some(local)) => {
            return Err(format!(
                "local_datacenter is {local}, but SimpleStrategy does not place replicas by data centre. ALTER KEYSPACE … WITH \
                 replication = {{'class': 'NetworkTopologyStrategy', '{local}': 3}}, or start without local_datacenter"
            ));
        }
        ("NetworkTopologyStrategy", None) => {}
        ("NetworkTopologyStrategy", Some(local)) => judge_local(local, &factors)?,
        (other, _) => {
            return Err(format!("replication strategy {other} is not supported: use NetworkTopologyStrategy"));
        }
    }
    if factors.is_empty() {
        return Err(
            "it has no replicas. ALTER KEYSPACE … WITH replication = {'class': 'NetworkTopologyStrategy', …}".into()
        );
    }
    let mut warnings = Vec::new();
    for (datacenter, factor) in &factors {
        if class == "NetworkTopologyStrategy" && !datacenters.contains(*datacenter) {
            warnings
                .push(format!("replicas are asked for in data centre {datacenter}, which has no node that is known"));
        }
        match factor {
            1 => warnings
                .push(format!("{datacenter}: 1: when that replica is lost, so is the work; use 3 in production")),
            factor if factor % 2 == 0 => warnings.push(format!(
                "{datacenter}: {factor}: no more failures are survived than with {}, and writes cost more",
                factor - 1
            )),
            _ => {}
        }
    }
    if class == "SimpleStrategy" && datacenters.len() > 1 {
        warnings.push("SimpleStrategy in several data centres: quorums cross them as chance has it".into());
    }
    Ok(warnings)
}

/// G1 with LOCAL levels: all replicas are in the one data centre, so that all of Perdure meets there, whichever node of it
/// is configured how.
fn judge_local(local: &str, factors: &BTreeMap<&str, u32>) -> Result<(), String> {
    if !factors.contains_key(local) {
        let known: Vec<&str> = factors.keys().copied().collect();
        return Err(format!(
            "local_datacenter is {local}, but the replicas are in {}. Names of data centres are case-sensitive",
            known.join(", ")
        ));
    }
    if let Some(other) = factors.keys().find(|name| **name != local) {
        return Err(format!(
            "local_datacenter is {local}, but {other} has replicas, too: a Perdure there would not see what is decided \
             here. ALTER KEYSPACE so that only {local} has replicas, or start without local_datacenter"
        ));
    }
    Ok(())
}

fn judge_table(table: &TableOptions) -> Result<(), String> {
    let name = &table.name;
    if let Some(mode) = table.read_repair.as_deref().filter(|mode| !mode.eq_ignore_ascii_case("BLOCKING")) {
        return Err(format!(
            "table {name} has read_repair = '{mode}': what one fence read saw, the next may miss. ALTER TABLE {name} WITH \
             read_repair = 'BLOCKING'"
        ));
    }
    match table.default_ttl {
        Some(ttl) if ttl != 0 => Err(format!(
            "table {name} has default_time_to_live = {ttl}: rows that are needed would vanish. ALTER TABLE {name} WITH \
             default_time_to_live = 0"
        )),
        _ => Ok(()),
    }
}

/// Of `system_views.settings` of one node.
fn judge_settings(settings: &HashMap<String, String>) -> Result<Vec<String>, String> {
    if let Some(variant) = settings.get("paxos_variant")
        && variant.contains("without_linearizable_reads")
    {
        return Err(format!("paxos_variant is {variant}: serial reads could miss what was decided. Use v1 or v2"));
    }
    let mut notes = Vec::new();
    if settings.get("commitlog_sync").is_some_and(|mode| mode == "periodic") {
        notes.push(
            "commitlog_sync is periodic: if most replicas lose power within the period, acknowledged writes are lost; \
             batch or group close that"
                .into(),
        );
    }
    Ok(notes)
}

async fn read_replication(cql: &Cql) -> Result<Replication, String> {
    let text = "SELECT replication, durable_writes FROM system_schema.keyspaces WHERE keyspace_name = ?";
    let answer = cql.session.query_unpaged(text, (&cql.keyspace,)).await.map_err(|e| e.to_string())?;
    let rows = answer.into_rows_result().map_err(|e| e.to_string())?;
    let (mut map, durable_writes) =
        rows.single_row::<(BTreeMap<String, String>, bool)>().map_err(|e| format!("the keyspace is not there: {e}"))?;
    let class = map.remove("class").unwrap_or_default();
    Ok(Replication { class, factors: map, durable_writes })
}

async fn read_tables(cql: &Cql) -> Result<Vec<TableOptions>, String> {
    let text = "SELECT * FROM system_schema.tables WHERE keyspace_name = ?";
    let answer = cql.session.query_unpaged(text, (&cql.keyspace,)).await.map_err(|e| e.to_string())?;
    let rows = answer.into_rows_result().map_err(|e| e.to_string())?;
    let names: Vec<String> = rows.column_specs().iter().map(|spec| spec.name().to_owned()).collect();
    let column = |name: &str| names.iter().position(|column| column == name);
    // Before Cassandra 4 there was no such option, and repair was blocking.
    let (name, read_repair, ttl) = (column("table_name"), column("read_repair"), column("default_time_to_live"));
    let ours: BTreeSet<&str> = schema::tables().collect();
    let mut tables = Vec::new();
    for row in rows.rows::<scylla::value::Row>().map_err(|e| e.to_string())? {
        let row = row.map_err(|e| e.to_string())?;
        let value = |index: Option<usize>| index.and_then(|index| row.columns.get(index)?.as_ref());
        let table = TableOptions {
            name: value(name).and_then(|v| v.as_text()).cloned().unwrap_or_default(),
            read_repair: value(read_repair).and_then(|v| v.as_text()).cloned(),
            default_ttl: value(ttl).and_then(|v| v.as_int()),
        };
        if ours.contains(table.name.as_str()) {
            tables.push(table);
        }
    }
    Ok(tables)
}

/// Settings of each node that answers. A Cassandra that does not tell is not refused for it.
async fn read_settings(cql: &Cql) -> Vec<(String, HashMap<String, String>)> {
    let state = cql.session.get_cluster_state();
    let mut all = Vec::new();
    for node in state.get_nodes_info() {
        let address = node.address.to_string();
        let mut statement = scylla::statement::Statement::new("SELECT name, value FROM system_views.settings");
        statement.set_consistency(scylla::statement::Consistency::One);
        let target = NodeIdentifier::Node(node.clone());
        statement.set_load_balancing_policy(Some(SingleTargetLoadBalancingPolicy::new(target, None)));
        let rows = match cql.session.query_unpaged(statement, ()).await {
            Ok(answer) => answer.into_rows_result().map_err(|e| e.to_string()),
            Err(error) => Err(error.to_string()),
        };
        let read = rows.and_then(|rows| {
            let rows = rows.rows::<(String, Option<String>)>().map_err(|e| e.to_string())?;
            Ok(rows.flatten().map(|(name, value)| (name, value.unwrap_or_default())).collect())
        });
        match read {
            Ok(settings) => all.push((address, settings)),
            Err(error) => tracing::debug!(node = address, error, "settings cannot be read"),
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(class: &str, factors: &[(&str, &str)], local: Option<&str>) -> Result<usize, String> {
        let factors = factors.iter().map(|(name, factor)| (name.to_string(), factor.to_string())).collect();
        let replication = Replication { class: class.into(), factors, durable_writes: true };
        let datacenters = ["dc1", "dc2"].map(String::from).into();
        judge_replication(&replication, local, &datacenters).map(|warnings| warnings.len())
    }

    const NETWORK: &str = "org.apache.cassandra.locator.NetworkTopologyStrategy";

    #[test]
    fn quorums_meet() {
        assert_eq!(judge(NETWORK, &[("dc1", "3")], None), Ok(0));
        assert_eq!(judge(NETWORK, &[("dc1", "3"), ("dc2", "0")], Some("dc1")), Ok(0));
        assert_eq!(judge(NETWORK, &[("dc1", "3"), ("dc2", "3")], None), Ok(0));
        assert_eq!(judge("SimpleStrategy", &[("replication_factor", "3")], None), Ok(1), "in two data centres");
    }

    #[test]
    fn poor_choices_are_warned_of() {
        assert_eq!(judge(NETWORK, &[("dc1", "1")], None), Ok(1));
        assert_eq!(judge(NETWORK, &[("dc1", "2")], None), Ok(1));
        assert_eq!(judge(NETWORK, &[("dc9", "3")], None), Ok(1));
    }

    #[test]
    fn quorums_that_need_not_meet_are_refused() {
        for (class, factors, local) in [
            (NETWORK, &[("dc1", "3"), ("dc2", "3")][..], Some("dc1")),
            (NETWORK, &[("dc2", "3")], Some("dc1")),
            (NETWORK, &[("dc1", "3/1")], None),
            (NETWORK, &[("dc1", "0")], None),
            ("SimpleStrategy", &[("replication_factor", "3")], Some("dc1")),
            ("EverywhereStrategy", &[], None),
            ("LocalStrategy", &[], None),
        ] {
            assert!(judge(class, factors, local).is_err(), "{class} {factors:?} {local:?}");
        }
    }

    #[test]
    fn table_and_paxos_settings() {
        let table = |read_repair: &str, ttl| {
            let read_repair = Some(read_repair.to_owned());
            judge_table(&TableOptions { name: "sessions".into(), read_repair, default_ttl: Some(ttl) })
        };
        assert!(table("BLOCKING", 0).is_ok());
        assert!(table("NONE", 0).unwrap_err().contains("read_repair = 'BLOCKING'"));
        assert!(table("BLOCKING", 1).is_err());
        let paxos = |variant: &str| judge_settings(&HashMap::from([("paxos_variant".into(), variant.into())]));
        assert!(paxos("v1").is_ok() && paxos("v2").is_ok());
        assert!(paxos("v2_without_linearizable_reads").is_err());
        assert!(paxos("v1_without_linearizable_reads_or_rejected_writes").is_err());
    }
}
