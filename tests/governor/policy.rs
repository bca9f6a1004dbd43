//! The policy, sample by sample.

use std::time::Duration;

use emberd::governor::policy::{Need, Settings};
use emberd::governor::{
    Admission, Cause, Decision, Effort, Firmware, Handle, Level, Memory, Phase, Policy, Pressure, Sample, Speeds,
    TYPICAL_CHUNK, Temperature, Work,
};

const MB: u64 = 1 << 20;

const NEED: Need = Need { weights: 800 * MB, position: 6 << 10, context: 4096, reserve: 128 * MB };

/// A cool machine with memory to spare, and a clock.
struct Bench {
    policy: Policy,
    speeds: Speeds,
    sample: Sample,
    now: f64,
}

impl Bench {
    fn new() -> Bench {
        let settings = Settings { threads: 4, chunk: 64, set_point: 73.0, cautious: 0.4, share: 0.5, need: NEED };
        let mut speeds = Speeds::unknown(4);
        for threads in 1..=4 {
            speeds.learn(Phase::Prefill, threads, 40.0 * threads as f64);
            speeds.learn(Phase::Decode, threads, [7.0, 12.0, 12.1, 12.1][threads - 1]);
        }
        let memory = Memory { total: 4096 * MB, available: 3000 * MB, swap_free: 0, limit: None };
        let sample = Sample {
            temperature: Temperature::Celsius(50.0),
            cpus: 4,
            memory: Some(memory),
            under_voltage: Some(false),
            firmware: Some(Firmware(0)),
            ..Sample::default()
        };
        Bench { policy: Policy::new(settings), speeds, sample, now: 0.0 }
    }

    fn step(&mut self) -> Decision {
        self.now += 1.0;
        self.policy.step(Duration::from_secs_f64(self.now), &self.sample, &self.speeds)
    }

    /// The last decision of so many seconds.
    fn wait(&mut self, seconds: usize) -> Decision {
        (0..seconds).map(|_| self.step()).last().expect("at least one")
    }

    /// As [`Bench::wait`], with a reading that moves as a real one does.
    fn wait_alive(&mut self, seconds: usize) -> Decision {
        let warm = self.sample.temperature.celsius().expect("a temperature");
        (0..seconds)
            .map(|second| {
                self.sample.temperature = Temperature::Celsius(warm + 0.5 * (second % 2) as f64);
                self.step()
            })
            .last()
            .expect("at least one")
    }

    fn available(&mut self, bytes: u64) {
        self.sample.memory = self.sample.memory.map(|memory| Memory { available: bytes, ..memory });
    }
}

#[test]
fn a_cool_machine_is_used_with_the_fewest_threads_that_are_worth_it() {
    let decision = Bench::new().step();
    assert_eq!((decision.level, decision.cause, decision.admission), (Level::Nominal, Cause::Nothing, Admission::Open));
    assert_eq!(decision.prefill, Effort { threads: 4, duty: 1.0 });
    assert_eq!(decision.decode, Effort { threads: 2, duty: 1.0 });
    assert_eq!(decision.chunk, 64);
}

#[test]
fn a_slow_board_gets_smaller_chunks() {
    let mut bench = Bench::new();
    bench.speeds = Speeds::unknown(4);
    bench.speeds.learn(Phase::Prefill, 4, 20.0);
    assert_eq!(bench.step().chunk, 32, "two seconds, in sixteens");
}

#[test]
fn a_weak_supply_caps_the_threads_and_cooling_does_not_lift_it() {
    let mut bench = Bench::new();
    bench.step();
    bench.sample.under_voltage = Some(true);
    let weak = bench.step();
    assert_eq!((weak.prefill.threads, weak.decode.threads), (2, 2));
    assert_eq!((weak.level, weak.cause), (Level::Warm, Cause::UnderVoltage));
    bench.sample.under_voltage = Some(false);
    bench.sample.temperature = Temperature::Celsius(20.0);
    let later = bench.wait(3500);
    assert_eq!((later.prefill.threads, later.cause), (2, Cause::UnderVoltage));
    assert_eq!(bench.policy.power_fault(Duration::from_secs_f64(bench.now), &bench.sample), Some(true));
    let over = bench.wait(300);
    assert_eq!((over.prefill.threads, over.level), (4, Level::Nominal));
}

#[test]
fn a_lost_sensor_means_a_fixed_cautious_duty() {
    let mut bench = Bench::new();
    bench.wait(5);
    bench.sample.temperature = Temperature::Lost;
    let lost = bench.wait(60);
    assert_eq!(lost.cause, Cause::SensorLost);
    assert!(lost.prefill.duty < 0.7 && lost.level == Level::Warm, "{lost:?}");
    assert_eq!(lost, bench.wait(600), "fixed");
    bench.sample.temperature = Temperature::Celsius(45.0);
    assert_eq!(bench.wait_alive(200).prefill, Effort { threads: 4, duty: 1.0 });
}

#[test]
fn a_machine_that_never_had_a_sensor_is_not_held_back() {
    let mut bench = Bench::new();
    bench.sample.temperature = Temperature::None;
    assert_eq!(bench.wait(100).prefill, Effort { threads: 4, duty: 1.0 });
}

#[test]
fn a_frozen_sensor_is_noticed_when_the_load_changes_and_it_does_not() {
    let mut bench = Bench::new();
    bench.sample.own_load = 4.0;
    assert_eq!(bench.wait(100).cause, Cause::Nothing);
    bench.sample.own_load = 0.0;
    assert_eq!(bench.wait(100).cause, Cause::SensorLost);
    // One that lives is believed, whatever the load.
    let mut bench = Bench::new();
    for load in [4.0, 0.0, 4.0, 0.0] {
        bench.sample.own_load = load;
        assert_eq!(bench.wait_alive(100).cause, Cause::Nothing);
    }
}

#[test]
fn it_yields_to_others_within_a_second_and_comes_back() {
    let mut bench = Bench::new();
    bench.step();
    bench.sample.other_load = 1.4;
    let polite = bench.step();
    assert_eq!((polite.prefill.threads, polite.cause, polite.level), (2, Cause::OtherLoad, Level::Nominal));
    // Its share is kept whatever they want.
    bench.sample.other_load = 4.0;
    assert_eq!(bench.step().prefill.threads, 2);
    bench.sample.other_load = 0.1;
    assert_eq!(bench.wait(3).prefill.threads, 2);
    assert_eq!(bench.wait(30).prefill.threads, 4);
}

#[test]
fn the_firmware_throttles_earlier_than_usual_and_the_limit_is_learned() {
    let mut bench = Bench::new();
    bench.sample.own_load = 4.0;
    bench.sample.temperature = Temperature::Celsius(68.0);
    assert_eq!(bench.wait_alive(30).level, Level::Nominal);
    bench.sample.firmware = Some(Firmware(0b100));
    let throttled = bench.wait_alive(60);
    assert_eq!(throttled.cause, Cause::Throttled);
    assert!(throttled.prefill.duty < 0.7, "{throttled:?}");
    // The bit is gone, what was learned stays.
    bench.sample.firmware = Some(Firmware(0));
    assert_eq!(bench.wait_alive(60).cause, Cause::Heat);
}

#[test]
fn a_board_without_bits_is_known_to_throttle_by_its_speed() {
    let mut bench = Bench::new();
    bench.sample.firmware = None;
    bench.sample.own_load = 4.0;
    bench.sample.temperature = Temperature::Celsius(70.0);
    bench.sample.work.relative_speed = Some(0.5);
    assert_eq!(bench.wait_alive(60).cause, Cause::Nothing, "of a request that is over");
    bench.sample.work.running = true;
    assert_eq!(bench.wait_alive(5).cause, Cause::Nothing);
    assert_eq!(bench.wait_alive(30).cause, Cause::Throttled);
    // Slow beside another program is another matter.
    let mut bench = Bench::new();
    bench.sample = Sample { firmware: None, own_load: 2.0, other_load: 2.0, ..bench.sample };
    bench.sample.temperature = Temperature::Celsius(70.0);
    bench.sample.work = Work { running: true, relative_speed: Some(0.5), ..bench.sample.work };
    assert_eq!(bench.wait_alive(60).cause, Cause::OtherLoad);
}

/// A prompt that is known but for its last token takes long for one token.
#[test]
fn a_short_chunk_is_no_measure_of_speed() {
    let bench = Bench::new();
    let handle = Handle::new(Decision::unlimited(4, 64));
    handle.loaded(NEED, bench.speeds.clone(), Decision::unlimited(4, 64));
    let relative = |tokens| {
        handle.computed(Phase::Prefill, 4, tokens, Duration::from_millis(80 * tokens as u64));
        handle.work().relative_speed
    };
    assert!((0..5).all(|_| relative(1).is_none()));
    assert!(relative(TYPICAL_CHUNK).is_some_and(|speed| speed < 0.5));
}

#[test]
fn memory_is_given_up_in_order() {
    let mut bench = Bench::new();
    let plenty = bench.step();
    assert!(plenty.cache_bytes > 1000 * MB);
    bench.available((800 + 200) * MB);
    let tight = bench.step();
    assert_eq!((tight.level, tight.cause, tight.cache_bytes), (Level::Warm, Cause::Memory, 0));
    assert_eq!((tight.admission, tight.chunk), (Admission::Open, 64));
    bench.available((800 + 100) * MB);
    let short = bench.step();
    assert_eq!((short.level, short.chunk, short.admission), (Level::Hot, 16, Admission::Positions(1024)));
    bench.available((800 + 20) * MB);
    let last = bench.step();
    assert_eq!((last.level, last.admission), (Level::Critical, Admission::LowMemory));
    // Back, but not at once.
    bench.available(3000 * MB);
    assert_eq!(bench.wait(10).admission, Admission::LowMemory);
    let mut back = last;
    for _ in 0..120 {
        back = bench.step();
        // Critical means that requests are refused, and nothing else does.
        assert_eq!(back.level == Level::Critical, back.admission == Admission::LowMemory, "{back:?}");
    }
    assert_eq!((back.level, back.admission, back.chunk), (Level::Nominal, Admission::Open, 64));
}

#[test]
fn locked_weights_are_not_waited_for() {
    let mut bench = Bench::new();
    bench.available(400 * MB);
    bench.sample.process.locked = 800 * MB;
    assert_eq!(bench.step().level, Level::Nominal);
}

#[test]
fn pressure_counts_where_it_is_measured() {
    let mut bench = Bench::new();
    bench.sample.memory_pressure = Some(Pressure { some: 60.0, full: 45.0 });
    assert_eq!(bench.step().admission, Admission::LowMemory);
}

#[test]
fn positions_are_admitted_by_need() {
    let mut bench = Bench::new();
    let large = Need { position: MB, ..NEED };
    let settings = Settings { threads: 4, chunk: 64, set_point: 73.0, cautious: 0.4, share: 0.5, need: large };
    bench.policy = Policy::new(settings);
    bench.available((800 + 1064) * MB);
    assert_eq!(bench.step().admission, Admission::Positions(1000));
    // What the engine holds already need not be found again.
    bench.sample.work.cache_bytes = 500 * MB;
    assert_eq!(bench.step().admission, Admission::Positions(1500));
}

#[test]
fn a_storm_of_page_faults_is_not_answered_by_computing_harder() {
    let mut bench = Bench::new();
    bench.step();
    for _ in 0..10 {
        bench.sample.process.major_faults += 3000;
        bench.sample.work.tokens += 1;
        bench.step();
    }
    let storm = bench.step();
    assert_eq!((storm.cause, storm.cache_bytes), (Cause::PageFaults, 0));
    assert_eq!((storm.prefill.threads, storm.decode.threads), (2, 2));
    assert_eq!(storm.chunk, 64, "every chunk reads all weights: fewer chunks, fewer faults");
    let calm = bench.wait(200);
    assert_eq!((calm.level, calm.prefill.threads), (Level::Nominal, 4));
}
