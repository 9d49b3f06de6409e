//! The commit protocol as models that are checked exhaustively within bounds, and its rules' broken variants.
//!
//! - [`append`]: one session's log on three replicas, message by message: creating a session, appending, fence reads, two
//!   fencers, the seal, the end of the session's row (rules G1 to G4, A1 to A4, F1 to F3).
//! - [`shards`]: what owners do with such logs: claims, chains of dead owners, recovery, hand-over, reads, flushes,
//!   checkpoints, truncation, the cleaner (rules A5, C1 to C4, M1 to M3, and G3 once more). It takes from the first model
//!   what that proves: a covered record is below the seal, and rows up to a seal can be read.
//!
//! Both take conditional writes as a linearizable register whose proposals may be decided at any later time while their
//! condition holds (G3). Nothing is ever late, lost or repeated by a clock: a message that was sent may arrive at any
//! time or never, and a session may rest between any two steps, so pauses, zombies and crashes need no steps of their own.
//!
//! A model without a broken rule must hold; with one, the checker must find a counterexample. `sim/tests/models.rs` says
//! which rule each variant breaks and what comes of it.

pub mod append;
pub mod shards;
