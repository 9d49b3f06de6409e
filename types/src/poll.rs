//! Names of polls, so that who sent a poll to another node can say of it: no answer has come, and none will.

use uuid::Uuid;

/// Version 8 of UUIDs leaves their content to who makes them.
const VERSION_BITS: u64 = 0xf000;
const VERSION: u64 = 0x8000;
const VARIANT_BITS: u64 = 0b11 << 62;
const VARIANT: u64 = 0b10 << 62;

/// One attempt of one node to get a task for a worker from a task queue's home on another one.
///
/// Starts of tasks for a poll have request ids that begin with its name. So a started task tells for whom it was started, when
/// nobody is left who has seen the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PollName(u64);

impl PollName {
    /// `unique`: no other poll has it, as far as chance goes.
    pub fn new(unique: u64) -> Self {
        Self(unique & !VERSION_BITS | VERSION)
    }

    /// As it travels; 0: no name.
    pub fn from_number(number: u64) -> Option<Self> {
        (number != 0).then(|| Self::new(number))
    }

    pub fn number(self) -> u64 {
        self.0
    }

    /// Of one start for this poll; `unique` tells its starts apart.
    pub fn request_id(self, unique: u64) -> Uuid {
        Uuid::from_u64_pair(self.0, unique & !VARIANT_BITS | VARIANT)
    }

    /// The poll that a start with this request id was for; `None`: one without a name.
    pub fn of_request(request_id: &str) -> Option<Self> {
        let (high, low) = Uuid::try_parse(request_id).ok()?.as_u64_pair();
        (high & VERSION_BITS == VERSION && low & VARIANT_BITS == VARIANT).then_some(Self(high))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_tells_its_poll() {
        for unique in [1, 0x8000, u64::MAX, 0x0123_4567_89ab_cdef] {
            let poll = PollName::new(unique);
            let [one, two] = [7, u64::MAX].map(|start| poll.request_id(start).to_string());
            assert_ne!(one, two);
            assert_eq!([one, two].map(|request| PollName::of_request(&request)), [Some(poll); 2]);
            assert_eq!(PollName::from_number(poll.number()), Some(poll));
        }
        assert_eq!(PollName::from_number(0), None);
    }

    #[test]
    fn other_requests_have_none() {
        for request in ["", "request", "0192d3c4-5e6f-4a7b-8c9d-0e1f2a3b4c5d"] {
            assert_eq!(PollName::of_request(request), None);
        }
    }
}
