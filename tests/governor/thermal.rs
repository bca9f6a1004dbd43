//! The policy on simulated boards, hours of them.

use emberd::governor::simulator::{Board, Day, Driver, Run, THROTTLES};
use emberd::governor::{Admission, Level};
use fastrand::Rng;

const HOUR: usize = 3600;

/// The default set point, and what a constant setting may reach to count as keeping to it: readings are half degrees.
const SET_POINT: f64 = 73.0;
const CEILING: f64 = 73.3;

fn steady(ambient: f64, seed: u64) -> Day {
    Day { ambient, swing: 0.0, others: 0.0, request: (300.0, 150.0), pause: 0.0, seed }
}

/// Random boards in random rooms, the same in every run.
fn boards(number: u64) -> impl Iterator<Item = (u64, Board, f64, Rng)> {
    (0..number).map(|seed| {
        let mut rng = Rng::with_seed(seed);
        let board = Board::random(&mut rng);
        let ambient = 10.0 + 35.0 * rng.f64();
        (seed, board, ambient, rng)
    })
}

/// Threads and levels per hour may change so often, the run-up not counted.
fn assert_calm(seed: u64, run: &Run, hours: usize, most: usize) {
    let threads = run.changes(|d| d.prefill.threads) + run.changes(|d| d.decode.threads);
    let levels = run.changes(|d| d.level) + run.changes(|d| d.admission);
    assert!(threads <= most * hours + 4, "board {seed}: {threads} changes of threads in {hours} hours");
    assert!(levels <= most * hours + 4, "board {seed}: {levels} changes of the level in {hours} hours");
}

#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "arithmetic that does not depend on the architecture")]
fn steady_work_is_within_five_percent_of_the_best_constant_setting() {
    let (mut hot, mut throttling) = (0, 0);
    for (seed, board, ambient, _) in boards(30) {
        let day = steady(ambient, seed);
        let run = board.run(&day, Driver::governor(), 2 * HOUR);
        assert!(run.peak() < 76.5, "board {seed}: {:.1} °C", run.peak());
        assert_eq!(run.throttled(), 0, "board {seed}");
        assert_calm(seed, &run, 2, 8);
        let best = board.best_constant(&day, CEILING, 2 * HOUR).expect("idle boards are cooler");
        let share = run.answered() / best.answered;
        assert!(share > 0.95, "board {seed}: {share:.3} of {best:?}");
        if board.settles_at(&day) > SET_POINT {
            hot += 1;
        }
        // What four threads do on boards that would throttle, held to the same temperature by the best pause.
        if board.settles_at(&day) > THROTTLES + 5.0 {
            throttling += 1;
            let all = board.constant(&day, (4, 4), CEILING, 2 * HOUR).expect("idle boards are cooler");
            let gain = run.answered() / all.answered;
            assert!(gain > 1.0, "board {seed}: {gain:.3} of all threads at the same temperature");
        }
    }
    assert!(hot >= 10 && throttling >= 6, "{hot} {throttling}");
}

#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "arithmetic that does not depend on the architecture")]
fn other_load_weather_and_pauses_do_not_overheat_or_starve() {
    for (seed, board, ambient, mut rng) in boards(120) {
        let day = Day {
            ambient: ambient.min(38.0),
            swing: 7.0 * rng.f64(),
            others: f64::from(rng.u8(0..=3)),
            request: (2000.0 * rng.f64() + 20.0, 400.0 * rng.f64() + 10.0),
            pause: if rng.bool() { 200.0 * rng.f64() } else { 0.0 },
            seed,
        };
        let run = board.run(&day, Driver::governor(), 4 * HOUR);
        // The others' heat and the board's own are not the governor's.
        let others = board.resistance * (board.idle + board.core * day.others + board.shared * 0.1);
        if day.ambient + day.swing + others < SET_POINT - 3.0 {
            assert!(run.peak() < THROTTLES, "board {seed}: {:.1} °C, {day:?} {board:?}", run.peak());
        }
        for window in run.seconds.chunks(1200) {
            let answered = window[window.len() - 1].answered - window[0].answered;
            assert!(answered > 0.0, "board {seed} starves: {day:?}");
        }
        // Others come and go six times an hour, requests at most as often as their pause allows.
        assert_calm(seed, &run, 4, 60);
    }
}

/// A board that is cooled again gets everything back.
#[test]
fn it_recovers() {
    let board = Board {
        resistance: 8.0,
        capacity: 20.0,
        idle: 2.5,
        core: 1.3,
        shared: 0.7,
        stalled: 0.6,
        slowest: 0.6,
        voltage: 1.5,
        prefill: 40.0,
        decode: 6.0,
        wall: 12.0,
    };
    // Three hours of a swing from 25 to 50 °C, to 0 and back.
    let day = Day { swing: 25.0, ..steady(25.0, 1) };
    let run = board.run(&day, Driver::governor(), 3 * HOUR);
    assert!(run.peak() < THROTTLES, "{:.1}", run.peak());
    let worst = |from: usize, to: usize| run.seconds[from..to].iter().map(|second| second.decision.level).max();
    assert!(worst(HOUR / 4, HOUR) >= Some(Level::Warm));
    let coldest = &run.seconds[5400];
    assert_eq!((coldest.decision.level, coldest.decision.prefill.threads), (Level::Nominal, 4));
    assert_eq!(coldest.decision.prefill.duty, 1.0);
}

/// Nothing that the engine leaves undone cools a board in an oven: requests are refused, and taken again when it is cooler.
#[test]
fn an_oven_closes_admission() {
    let board = boards(1).next().expect("one").1;
    let board = Board { resistance: 8.0, capacity: 20.0, idle: 3.0, ..board };
    let day = Day { swing: 40.0, ..steady(40.0, 1) };
    let run = board.run(&day, Driver::governor(), 2 * HOUR);
    let at = |second: usize| run.seconds[second].decision;
    assert_eq!((at(1800).admission, at(1800).level), (Admission::Overheated, Level::Critical));
    assert_eq!(at(2 * HOUR - 600).admission, Admission::Open);
    assert!(run.changes(|decision| decision.admission) <= 2);
}

/// What is not to be had below 80 °C: a hotter board gives off more heat, so that all threads in the firmware's throttling
/// answer more than any number of threads with any pause. With a set point just below the limit, the governor comes as near
/// as a constant setting can. (`--nocapture` shows the figures of docs/governor.md.)
#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "arithmetic that does not depend on the architecture")]
fn just_below_the_limit_it_is_as_near_to_the_firmwares_throttling_as_can_be() {
    let hours = 2 * HOUR;
    let mut found = Vec::new();
    for (seed, board, ambient, _) in boards(40) {
        let day = steady(ambient, seed);
        let all = board.run(&day, Driver::all_threads(), hours);
        if all.throttled() < hours / 2 {
            continue;
        }
        let usual = board.run(&day, Driver::governor(), hours);
        let near = board.run(&day, Driver::governor_at(79.0), hours);
        let best = board.best_constant(&day, THROTTLES - 0.1, hours).expect("idle boards are cooler").answered;
        assert!(near.answered() > 0.93 * best, "board {seed}: {:.3} of the best constant", near.answered() / best);
        assert!(near.peak() < THROTTLES + 1.5, "board {seed}: {:.1} °C", near.peak());
        assert!(near.throttled() < hours / 20, "board {seed}: throttled for {} s", near.throttled());
        let (any, all) = (board.best_constant(&day, f64::INFINITY, hours).expect("no limit").answered, all.answered());
        assert!(any < 1.03 * all, "board {seed}: hotter settings answer more than all threads");
        found.push([usual.answered() / all, near.answered() / all, best / all]);
    }
    assert!(found.len() >= 12, "{}", found.len());
    println!("{} boards, of what all threads answer in the firmware's throttling (least, median, most):", found.len());
    for (at, name) in ["governor at 73 °C", "governor at 79 °C", "best constant below 80 °C"].into_iter().enumerate()
    {
        let mut shares: Vec<f64> = found.iter().map(|shares| shares[at]).collect();
        shares.sort_by(f64::total_cmp);
        println!("{name}: {:.2}, {:.2}, {:.2}", shares[0], shares[shares.len() / 2], shares[shares.len() - 1]);
    }
}
