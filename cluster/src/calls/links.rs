//! One link to each member, made when it joins and broken when it goes.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
};

use perdure_proto::perdure::node::v1::{call_frame, reply_frame};
use perdure_types::NodeId;
use tokio::{sync::watch, task::JoinHandle};

use super::link::{self, CallError, Caller, Link};
use crate::membership::Routes;

type ByNode = Arc<RwLock<HashMap<NodeId, Link>>>;

pub(crate) struct Links {
    by_node: ByNode,
    follower: JoinHandle<()>,
}

impl Drop for Links {
    fn drop(&mut self) {
        self.follower.abort();
    }
}

impl Links {
    pub(crate) fn new(caller: Arc<Caller>, routes: watch::Receiver<Routes>) -> Self {
        let by_node = ByNode::default();
        Self { by_node: by_node.clone(), follower: tokio::spawn(follow(by_node, caller, routes)) }
    }

    pub(crate) async fn call(&self, node: &NodeId, call: call_frame::Call) -> Result<reply_frame::Reply, CallError> {
        let connection = self.read().get(node).map(Link::channel);
        match connection {
            Some(connection) => link::call(connection, call).await,
            None => Err(CallError::NotSent),
        }
    }

    /// The member's clock less this node's, as far as is known.
    pub(crate) fn clock_offset_ns(&self, node: &NodeId) -> i64 {
        self.read().get(node).map_or(0, Link::clock_offset_ns)
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, HashMap<NodeId, Link>> {
        self.by_node.read().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn follow(by_node: ByNode, caller: Arc<Caller>, mut routes: watch::Receiver<Routes>) {
    loop {
        let members = routes.borrow_and_update().members.clone();
        {
            let mut links = by_node.write().unwrap_or_else(PoisonError::into_inner);
            links.retain(|node, _| members.iter().any(|member| member.node == *node));
            for member in members.iter().filter(|member| member.node != caller.me) {
                let start = || Link::start(caller.clone(), member.node.clone(), member.address);
                links.entry(member.node.clone()).or_insert_with(start);
            }
        }
        if routes.changed().await.is_err() {
            // Membership has ended: what goes on goes on over the links that there are.
            return std::future::pending().await;
        }
    }
}
