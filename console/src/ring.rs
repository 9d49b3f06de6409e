//! The ring of shards, each in the colour of who serves it.

use maud::{Markup, html};
use perdure_proto::perdure::node::v1::ShardInfo;

/// Colours of the style sheet.
const COLOURS: usize = 8;

/// The class of a member's colour; members are in order.
pub fn colour<'a>(members: impl Iterator<Item = &'a str>, node: &str) -> String {
    let mut members = members;
    members.position(|member| member == node).map_or_else(|| "mx".to_owned(), |place| format!("m{}", place % COLOURS))
}

/// Consecutive shards of one owner.
struct Arc {
    class: String,
    from: usize,
    count: usize,
}

pub fn ring<'a>(shards: &[ShardInfo], members: impl Iterator<Item = &'a str> + Clone) -> Markup {
    let mut arcs: Vec<Arc> = Vec::new();
    for (place, shard) in shards.iter().enumerate() {
        let class = colour(members.clone(), &shard.served_by);
        match arcs.last_mut().filter(|arc| arc.class == class) {
            Some(arc) => arc.count += 1,
            None => arcs.push(Arc { class, from: place, count: 1 }),
        }
    }
    let total = shards.len();
    let unserved = shards.iter().filter(|shard| shard.served_by.is_empty()).count();
    let label = if unserved == 0 { "shards" } else { "not served" };
    html! {
        svg.ring viewBox="0 0 120 120" role="img" aria-label=(format!("{total} shards, {unserved} of them not served")) {
            circle.under cx="60" cy="60" r="48" fill="none" {}
            @for arc in &arcs {
                circle.(arc.class) cx="60" cy="60" r="48" fill="none" pathLength=(total.max(1))
                    stroke-dasharray=(format!("{} {}", arc.count, total - arc.count))
                    stroke-dashoffset=(format!("-{}", arc.from)) {}
            }
            text.big x="60" y="63" text-anchor="middle" { (if unserved == 0 { total } else { unserved }) }
            text.small x="60" y="77" text-anchor="middle" { (label) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shard(number: u32, served_by: &str) -> ShardInfo {
        ShardInfo { shard: number, served_by: served_by.into(), ..ShardInfo::default() }
    }

    #[test]
    fn neighbours_of_one_owner_are_one_arc() {
        let shards = [shard(0, "a"), shard(1, "a"), shard(2, "b"), shard(3, "")];
        let text = ring(&shards, ["a", "b"].into_iter()).into_string();
        assert!(text.contains("stroke-dasharray=\"2 2\"") && text.contains("stroke-dashoffset=\"-2\""), "{text}");
        assert_eq!(text.matches("<circle").count(), 4, "three arcs and what is under them: {text}");
        assert!(text.contains("not served"), "{text}");
    }

    #[test]
    fn no_shards_are_no_arcs() {
        let text = ring(&[], std::iter::empty()).into_string();
        assert!(text.contains("0 shards"), "{text}");
    }
}
