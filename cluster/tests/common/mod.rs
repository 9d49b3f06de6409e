//! What the tests share.

#![allow(dead_code)] // Each test binary uses a part.

pub mod node;

use std::{
    collections::BTreeMap,
    net::{SocketAddr, UdpSocket},
    sync::{Arc, Mutex},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use async_trait::async_trait;
use perdure_cluster::{MemberRow, MemberTable, MembershipConfig, Settle};
use perdure_proto::Error;
use perdure_types::SlotCount;
use tokio::sync::watch;

/// The table of members in memory.
#[derive(Clone, Default)]
pub struct Table {
    rows: Arc<Mutex<BTreeMap<String, MemberRow>>>,
    cut: watch::Sender<bool>,
}

impl Table {
    /// The same table over a connection of its own.
    pub fn for_node(&self) -> Self {
        Self { rows: self.rows.clone(), cut: watch::Sender::default() }
    }

    /// From now on no answer comes over this connection; or they come again.
    pub fn cut(&self, cut: bool) {
        self.cut.send_replace(cut);
    }

    async fn answer(&self) {
        let _ = self.cut.subscribe().wait_for(|cut| !cut).await;
    }

    pub fn shared(&self) -> Arc<dyn MemberTable> {
        Arc::new(self.clone())
    }
}

#[async_trait]
impl MemberTable for Table {
    async fn put(&self, row: MemberRow, _ttl: Duration) -> Result<(), Error> {
        self.answer().await;
        self.rows.lock().unwrap().insert(row.node.clone(), row);
        Ok(())
    }

    async fn list(&self) -> Result<Vec<MemberRow>, Error> {
        self.answer().await;
        Ok(self.rows.lock().unwrap().values().cloned().collect())
    }

    async fn delete(&self, node: &str) -> Result<(), Error> {
        self.answer().await;
        self.rows.lock().unwrap().remove(node);
        Ok(())
    }
}

#[allow(clippy::disallowed_methods)] // The one place in these tests.
pub fn now() -> i64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since_epoch.as_nanos()).unwrap_or(i64::MAX)
}

pub fn slots() -> SlotCount {
    SlotCount::new(64).unwrap()
}

/// A port of loopback that nobody has now.
pub fn free_address() -> SocketAddr {
    UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// A member that settles quickly.
pub fn fast(cluster: &str) -> MembershipConfig {
    fast_at(cluster, free_address())
}

pub fn fast_at(cluster: &str, address: SocketAddr) -> MembershipConfig {
    MembershipConfig {
        settle: Settle { join: Duration::from_millis(200), start: Duration::from_millis(1000) },
        gossip_interval: Duration::from_millis(50),
        table_interval: Duration::from_millis(200),
        store_silence: Duration::from_millis(800),
        unreached_after: Duration::from_millis(500),
        ..MembershipConfig::new(cluster, slots(), address, now)
    }
}

/// Waits until `holds`.
pub async fn wait_for(what: &str, holds: impl Fn() -> bool) {
    let patience = tokio::time::Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(tokio::time::Instant::now() < patience, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
