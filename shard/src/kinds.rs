//! The kinds of entities that a shard hosts. A new kind is one more line here, and a crate that knows what it does.

use perdure_activity::Activities;
use perdure_batch::Job;
use perdure_deployment::{Deployment, TaskQueue};
use perdure_operation::Operations;
use perdure_proto::perdure::state::v1::ChainHead;
use perdure_schedule::Schedule;
use perdure_types::{ChainKey, EntityKind};
use perdure_workflow::{Chain, Entity, SingleEntity};

/// An entity from its stored head (an empty one: the store knows nothing of it). Its runs are to be inserted next.
pub(crate) fn from_head(key: &ChainKey, head: ChainHead) -> Box<dyn Entity> {
    match key.kind {
        EntityKind::Workflow => Box::new(Chain::from_head(key.clone(), head)),
        EntityKind::Schedule => Box::new(SingleEntity::<Schedule>::from_head(key.clone(), head)),
        EntityKind::Batch => Box::new(SingleEntity::<Job>::from_head(key.clone(), head)),
        EntityKind::Activity => Box::new(Activities::from_head(key.clone(), head)),
        EntityKind::Deployment => Box::new(SingleEntity::<Deployment>::from_head(key.clone(), head)),
        EntityKind::TaskQueue => Box::new(SingleEntity::<TaskQueue>::from_head(key.clone(), head)),
        EntityKind::NexusOperation => Box::new(Operations::from_head(key.clone(), head)),
    }
}
