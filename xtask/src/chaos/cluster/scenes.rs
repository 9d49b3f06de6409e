//! The scenes.

use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use serde_json::Value;

use super::bed::Bed;
use super::{Options, Scene};

const FROZEN: Duration = Duration::from_secs(30);
const CUT: Duration = Duration::from_secs(20);
/// After the last of many events, the ring is right within this.
const SETTLED_WITHIN: Duration = Duration::from_secs(5);

/// Plays one; gives a line that says what was seen.
pub fn play(scene: Scene, options: &Options, binaries: &Path, seeds: &str) -> Result<String> {
    let mut bed = Bed::make(options, scene.name(), binaries.to_path_buf(), seeds.to_owned())?;
    bed.wait_ring_somewhen()?;
    let most = options.at_most_stall_ms.map(|most| most.to_string());
    let limits: Vec<&str> = most.iter().flat_map(|most| ["--at-most-stall-ms", most.as_str()]).collect();
    let strict = [&limits[..], &["--no-failed-call"]].concat();
    let settle = Duration::from_secs(options.settle_seconds);
    let line = match scene {
        Scene::Kill => {
            bed.load(options, None, &strict)?;
            kill(&mut bed, options.times, settle)?
        }
        Scene::Rolling => {
            bed.load(options, None, &strict)?;
            rolling(&mut bed, options.times, settle)?
        }
        Scene::Add => {
            bed.load(options, None, &strict)?;
            add(&mut bed, options.servers, settle)?
        }
        Scene::Freeze => {
            bed.load(options, Some(options.servers), &strict)?;
            freeze(&mut bed, options.servers, settle)?
        }
        Scene::Cut => {
            bed.load(options, Some(options.servers), &strict)?;
            cut(&mut bed, options.servers, settle)?
        }
        Scene::Split => {
            bed.load(options, None, &strict)?;
            split(&mut bed, settle)?
        }
        Scene::Flap => flap(&mut bed, options.servers, options.flaps)?,
        Scene::All => bail!("not one scene"),
    };
    let report = bed.verdict(scene.name())?;
    if scene == Scene::Split {
        return Ok(format!("{line}; {}", not_much_slower(&report)?));
    }
    Ok(line)
}

/// The victims in turn.
fn victims(bed: &Bed, times: u32) -> Vec<u8> {
    bed.numbers().into_iter().cycle().take(times as usize).collect()
}

fn kill(bed: &mut Bed, times: u32, settle: Duration) -> Result<String> {
    for victim in victims(bed, times) {
        bed.tell(&format!("kill {victim}"))?;
        bed.servers.get(victim)?.signal("KILL")?;
        bed.servers.get(victim)?.wait_end()?;
        sleep(settle);
        bed.tell(&format!("restart {victim}"))?;
        bed.servers.start(victim)?;
        bed.servers.wait_ready(victim)?;
        bed.wait_ring_somewhen()?;
        sleep(settle);
    }
    Ok(format!("{times} kills, each started again"))
}

fn rolling(bed: &mut Bed, times: u32, settle: Duration) -> Result<String> {
    let mut longest = Duration::ZERO;
    for victim in victims(bed, times) {
        bed.tell(&format!("term {victim}"))?;
        let begun = Instant::now();
        let server = bed.servers.get(victim)?;
        server.signal("TERM")?;
        let status = server.wait_end()?;
        ensure!(status.success(), "server {victim} ended with {status}");
        longest = longest.max(begun.elapsed());
        sleep(settle);
        bed.tell(&format!("restart {victim}"))?;
        bed.servers.start(victim)?;
        bed.servers.wait_ready(victim)?;
        bed.wait_ring_somewhen()?;
        sleep(settle);
    }
    Ok(format!("{times} stops, the longest took {:.1} s", longest.as_secs_f64()))
}

fn add(bed: &mut Bed, servers: u8, settle: Duration) -> Result<String> {
    let number = servers + 1;
    bed.tell(&format!("add {number}"))?;
    bed.add(number)?;
    bed.servers.wait_ready(number)?;
    let took = bed.wait_ring_somewhen()?;
    sleep(settle);
    Ok(format!("one server more, the ring was right {:.1} s after it served", took.as_secs_f64()))
}

fn freeze(bed: &mut Bed, victim: u8, settle: Duration) -> Result<String> {
    bed.tell(&format!("freeze {victim}"))?;
    bed.servers.get(victim)?.signal("STOP")?;
    sleep(FROZEN);
    bed.tell(&format!("thaw {victim}"))?;
    bed.servers.get(victim)?.signal("CONT")?;
    let took = rejoins(bed, victim)?;
    let log = bed.servers.get(victim)?.log_text()?;
    ensure!(
        log.contains("this session was fenced by another node"),
        "server {victim} does not know that it was fenced"
    );
    sleep(settle);
    Ok(format!("frozen for {} s, rejoined {:.1} s after", FROZEN.as_secs(), took.as_secs_f64()))
}

/// A server that was fenced comes back by itself: as a new session of the same process, or as a process that its supervisor
/// starts again.
fn rejoins(bed: &mut Bed, victim: u8) -> Result<Duration> {
    let begun = Instant::now();
    loop {
        match bed.wait_ring(Duration::from_secs(1)) {
            Ok(_) => return Ok(begun.elapsed()),
            Err(error) if begun.elapsed() > Duration::from_secs(60) => return Err(error),
            Err(_) => {}
        }
        if let Some(status) = bed.servers.get(victim)?.ended()? {
            bail!("server {victim} ended: {status}");
        }
    }
}

fn cut(bed: &mut Bed, victim: u8, settle: Duration) -> Result<String> {
    let others: Vec<u8> = bed.numbers().into_iter().filter(|number| *number != victim).collect();
    let cuts = ["peers", "cassandra", "to-peers", "from-peers"];
    let mut healed = Vec::new();
    for what in cuts {
        bed.tell(&format!("cut-{what} {victim}"))?;
        let Some(net) = &bed.net else { bail!("this scene has no network of its own") };
        for other in &others {
            if matches!(what, "peers" | "to-peers") {
                net.cut(victim, *other)?;
            }
            if matches!(what, "peers" | "from-peers") {
                net.cut(*other, victim)?;
            }
        }
        if what == "cassandra" {
            net.cut_cassandra(victim)?;
        }
        sleep(CUT);
        bed.tell(&format!("heal-{what} {victim}"))?;
        if let Some(net) = &bed.net {
            net.heal()?;
        }
        let took = rejoins(bed, victim)?;
        healed.push(format!("{what} {:.1} s", took.as_secs_f64()));
        sleep(settle);
    }
    Ok(format!("healed without a restart: {}", healed.join(", ")))
}

/// As many shards again, while they are served.
fn split(bed: &mut Bed, settle: Duration) -> Result<String> {
    bed.tell("steady")?;
    sleep(2 * settle);
    let number = bed.numbers()[0];
    let before = shards(bed, number)?;
    bed.tell("split")?;
    let begun = Instant::now();
    bed.servers.ask(number, &["split"])?;
    while shards(bed, number)? != 2 * before {
        ensure!(begun.elapsed() < Duration::from_secs(120), "the shards are not split: see the servers' logs");
        sleep(Duration::from_millis(250));
    }
    let took = begun.elapsed();
    bed.wait_ring_somewhen()?;
    bed.tell("after")?;
    sleep(settle);
    Ok(format!("{before} shards became {} within {:.1} s", 2 * before, took.as_secs_f64()))
}

fn shards(bed: &mut Bed, number: u8) -> Result<usize> {
    let answer = bed.servers.ask(number, &["shards"])?;
    Ok(answer["shards"].as_array().map_or(0, Vec::len))
}

/// The steps of workflows while shards are split, beside those before.
fn not_much_slower(report: &Value) -> Result<String> {
    let p99 = |what: &str| {
        let events = report["events"].as_array().into_iter().flatten();
        events.filter(|event| event["what"] == what).find_map(|event| event["step_ms_p99"].as_u64())
    };
    let (Some(before), Some(during)) = (p99("steady"), p99("split")) else { bail!("the report has no such figures") };
    ensure!(during <= 2 * before.max(1), "steps took {before} ms at p99, and {during} ms during the split");
    Ok(format!("steps took {before} ms at p99 before, {during} ms meanwhile"))
}

/// Half of the servers stay; the rest come and go as fast as they can.
fn flap(bed: &mut Bed, servers: u8, events: u32) -> Result<String> {
    let mut state: u32 = 0x9e37_79b9;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state
    };
    let (mut joins, mut leaves, mut deaths) = (0, 0, 0);
    for _ in 0..events {
        let victim = 2 + (next() % u32::from(servers - 1)) as u8;
        let is_running = bed.servers.get(victim)?.is_running();
        if !is_running {
            bed.servers.start(victim)?;
            joins += 1;
        } else if next().is_multiple_of(2) {
            // One that is only starting ends at once, too.
            bed.servers.get(victim)?.signal("TERM")?;
            bed.servers.get(victim)?.wait_end()?;
            leaves += 1;
        } else {
            bed.servers.get(victim)?.signal("KILL")?;
            bed.servers.get(victim)?.wait_end()?;
            deaths += 1;
        }
        sleep(Duration::from_millis(u64::from(next() % 1000)));
    }
    // The last event is that those which run are there.
    let running: Vec<u8> =
        bed.servers.all.iter().filter(|server| server.is_running()).map(|server| server.place.number).collect();
    for number in running {
        bed.servers.wait_ready(number)?;
    }
    let took = bed.wait_ring(SETTLED_WITHIN)?;
    Ok(format!(
        "{joins} joins, {leaves} leaves, {deaths} deaths; the ring was right on every server after {:.1} s",
        took.as_secs_f64()
    ))
}
