//! What a node serves, as text for gossip: `shard:epoch` pairs, split over several keys so that a change of one shard does
//! not send all of them again, and so that none is larger than a datagram.

use std::collections::BTreeMap;

use perdure_types::{Epoch, Served, SessionId, ShardId, SlotCount};

/// Shards whose values share a key.
const SHARDS_PER_KEY: u32 = 64;
const SHARDS: &str = "shards/";
const SESSION: &str = "session";
/// All shards of so many are there.
const SLOTS: &str = "slots";

/// The keys and values that tell `served`. Parts in which nothing is served are empty values of the keys of `before`.
pub(crate) fn encode(before: &Served, served: &Served) -> BTreeMap<String, String> {
    let mut values = BTreeMap::new();
    for shard in before.shards.keys() {
        values.insert(format!("{SHARDS}{}", shard.0 / SHARDS_PER_KEY), String::new());
    }
    let mut parts: BTreeMap<u32, Vec<String>> = BTreeMap::new();
    for (shard, epoch) in &served.shards {
        parts.entry(shard.0 / SHARDS_PER_KEY).or_default().push(format!("{}:{}", shard.0, epoch.0));
    }
    values.extend(parts.into_iter().map(|(part, pairs)| (format!("{SHARDS}{part}"), pairs.join(","))));
    let session = served.session.map_or_else(String::new, |session| session.to_string());
    values.insert(SESSION.to_owned(), session);
    if let Some(slots) = served.map.slots {
        values.insert(SLOTS.to_owned(), slots.get().to_string());
    }
    values
}

/// Nonsense is left out: another version may write what this one does not know.
pub(crate) fn decode<'a>(values: impl Iterator<Item = (&'a str, &'a str)>) -> Served {
    let mut served = Served::default();
    for (key, value) in values {
        if key == SESSION {
            served.session = SessionId::parse(value);
        } else if key == SLOTS {
            served.map.slots = value.parse().ok().and_then(SlotCount::new);
        } else if key.starts_with(SHARDS) {
            served.shards.extend(value.split(',').filter_map(pair));
        }
    }
    served
}

fn pair(text: &str) -> Option<(ShardId, Epoch)> {
    let (shard, epoch) = text.split_once(':')?;
    Some((ShardId(shard.parse().ok()?), Epoch(epoch.parse().ok()?)))
}

#[cfg(test)]
mod tests {
    use perdure_types::ShardMap;

    use super::*;

    fn served(shards: &[(u32, u64)]) -> Served {
        Served {
            session: SessionId::parse("0192d3c4-5e6f-4a7b-8c9d-0e1f2a3b4c5d"),
            shards: shards.iter().map(|(shard, epoch)| (ShardId(*shard), Epoch(*epoch))).collect(),
            map: ShardMap { slots: SlotCount::new(64), ..ShardMap::default() },
        }
    }

    fn applied(states: &[Served]) -> Served {
        let mut values: BTreeMap<String, String> = BTreeMap::new();
        let mut before = Served::default();
        for state in states {
            values.extend(encode(&before, state));
            before = state.clone();
        }
        decode(values.iter().map(|(key, value)| (key.as_str(), value.as_str())))
    }

    #[test]
    fn what_is_served_comes_across() {
        for shards in [&[][..], &[(0, 1)], &[(1, 7), (63, 2), (64, 3), (4095, 1 << 30)]] {
            assert_eq!(applied(&[served(shards)]), served(shards));
        }
    }

    #[test]
    fn what_is_served_no_more_vanishes() {
        assert_eq!(applied(&[served(&[(1, 1), (70, 1), (200, 1)]), served(&[(70, 2)])]), served(&[(70, 2)]));
        assert_eq!(applied(&[served(&[(1, 1)]), Served { shards: BTreeMap::new(), ..served(&[]) }]), served(&[]));
    }

    #[test]
    fn nonsense_is_left_out() {
        let values = [("shards/0", "1:2,x,3:,:4,5:6"), ("session", "?"), ("other", "1:1"), ("slots", "3")];
        let expected = Served { shards: served(&[(1, 2), (5, 6)]).shards, ..Served::default() };
        assert_eq!(decode(values.into_iter()), expected);
    }
}
