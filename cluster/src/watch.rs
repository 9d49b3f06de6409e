//! What all members say of their shards and task queues: one call to each, at once.
//!
//! Who does not answer in time is left out, and named: to watch a cluster must work best when something is wrong with it.

use std::{collections::BTreeMap, time::Duration};

use futures::future::join_all;
use perdure_proto::{
    Error,
    perdure::node::v1::{
        Empty, MatchingCall, QueueInfos, QueuesResponse, ShardCall, ShardStatus, matching_call, matching_reply,
        shard_call, shard_reply,
    },
};
use perdure_types::NodeId;
use tokio::time::timeout;

use crate::route::Cluster;

const ANSWERED_WITHIN: Duration = Duration::from_secs(2);

impl Cluster {
    /// By shard; of those who answer.
    pub(crate) async fn shard_statuses(&self, nodes: &[NodeId]) -> BTreeMap<u32, ShardStatus> {
        let answers = join_all(nodes.iter().map(|node| timeout(ANSWERED_WITHIN, self.statuses_of(node)))).await;
        let known = answers.into_iter().filter_map(|answer| answer.ok()?.ok()).flatten();
        known.map(|status| (status.shard, status)).collect()
    }

    async fn statuses_of(&self, node: &NodeId) -> Result<Vec<ShardStatus>, Error> {
        let command = Some(shard_call::Command::DescribeAll(Empty {}));
        let reply = self.shard(node, ShardCall { node: self.me(), command, ..ShardCall::default() }).await?;
        match reply.reply {
            Some(shard_reply::Reply::Statuses(statuses)) => Ok(statuses.shards),
            _ => Err(Error::internal("a member answered with something else")),
        }
    }

    /// Of one namespace or, if none is named, of all.
    pub(crate) async fn queues(&self, nodes: &[NodeId], namespace_id: &str) -> QueuesResponse {
        let answers =
            join_all(nodes.iter().map(|node| timeout(ANSWERED_WITHIN, self.queues_of(node, namespace_id)))).await;
        let mut response = QueuesResponse::default();
        for (node, answer) in nodes.iter().zip(answers) {
            let Ok(Ok(mut infos)) = answer else {
                response.silent.push(node.to_string());
                continue;
            };
            infos.queues.iter_mut().for_each(|queue| queue.node = node.to_string());
            response.queues.append(&mut infos.queues);
            response.total += infos.total;
        }
        response.queues.sort_by(|a, b| b.backlog.cmp(&a.backlog).then_with(|| a.name.cmp(&b.name)));
        response
    }

    async fn queues_of(&self, node: &NodeId, namespace_id: &str) -> Result<QueueInfos, Error> {
        let call = MatchingCall {
            namespace_id: namespace_id.to_owned(),
            command: Some(matching_call::Command::ListQueues(Empty {})),
            ..MatchingCall::default()
        };
        match self.matching_of(node, call).await?.reply {
            Some(matching_reply::Reply::Queues(infos)) => Ok(infos),
            _ => Err(Error::internal("a member answered with something else")),
        }
    }
}
