//! The one consistency domain (rule G1).
//!
//! Every statement names its consistency explicitly, and takes it from here: nothing is left to a driver's default. An LWT
//! has two: the serial one for its Paxos rounds, and the plain one for its commit, which is QUORUM as well; at ONE a fence
//! read could miss a decided change, and the protocol would be broken.

use scylla::statement::{Consistency, SerialConsistency};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Domain {
    pub plain: Consistency,
    pub serial: SerialConsistency,
    /// A read that settles what Paxos has under way (G3).
    pub serial_read: Consistency,
}

impl Domain {
    /// LOCAL levels count the replicas of one data centre only: right if no other has any (`assumptions` checks that).
    pub fn of(local_datacenter: Option<&str>) -> Self {
        match local_datacenter {
            Some(_) => Self {
                plain: Consistency::LocalQuorum,
                serial: SerialConsistency::LocalSerial,
                serial_read: Consistency::LocalSerial,
            },
            None => {
                Self { plain: Consistency::Quorum, serial: SerialConsistency::Serial, serial_read: Consistency::Serial }
            }
        }
    }
}
