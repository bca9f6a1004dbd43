//! How much heat the engine may make: a controller that holds the predicted temperature at a set point.
//!
//! Its output is a share of the heat of all threads. A proportional part acts on the temperature some seconds ahead, an
//! integral part finds the share that the board can bear for ever. Both stand still while nothing is limited, so a cool board
//! after a pause gets everything until it is warm again.

use std::time::Duration;

use super::super::sample::{Sample, Temperature};

/// From here the firmware of a Raspberry Pi throttles, degrees Celsius.
const FIRMWARE_LIMIT: f64 = 80.0;

/// The set point stays so far below a limit at which the firmware was seen to throttle, or as far as it is below the usual one.
const MARGIN: f64 = 5.0;

/// Lowest limit that is believed.
const LOWEST_LIMIT: f64 = 60.0;

/// The whole range is given up over so many degrees above the set point.
const BAND: f64 = 8.0;

/// Time of the integral part, and of its way down when the temperature is well above the set point; seconds.
const INTEGRAL: f64 = 150.0;
const INTEGRAL_DOWN: f64 = 40.0;

/// So far ahead the temperature is predicted from its slope, seconds.
const AHEAD: f64 = 12.0;

/// Time constants of the filters of the temperature and of its slope, seconds.
const SMOOTH: f64 = 3.0;
const SMOOTH_SLOPE: f64 = 8.0;

/// Least share: an answer goes on, however slowly.
const LEAST: f64 = 0.02;

/// A sensor is frozen when its reading is the same to the last digit through so many seconds of heavy load and as many of
/// none, or through ten times as many of heavy load.
const FROZEN: f64 = 60.0;

/// What the controller says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Allowed {
    /// Share of the heat of all threads, above 0 and at most 1.
    pub(super) share: f64,
    /// Whether the temperature should be known and is not.
    pub(super) lost: bool,
    /// Whether the firmware holds the clock down.
    pub(super) throttled: bool,
    /// Whether even the least share is too much.
    pub(super) overheated: bool,
}

#[derive(Debug)]
pub(super) struct Heat {
    set_point: f64,
    cautious: f64,
    limit: f64,
    /// Between the set point and a limit that was learned.
    margin: f64,
    /// The integral part.
    bearable: f64,
    filter: Option<Filter>,
    frozen: Frozen,
    throttled_for: f64,
    hot_for: f64,
    cool_for: f64,
    overheated: bool,
    last: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Filter {
    temperature: f64,
    slope: f64,
}

#[derive(Debug, Default)]
struct Frozen {
    reading: f64,
    busy: f64,
    idle: f64,
}

impl Heat {
    /// A controller for `set_point` degrees Celsius, and for the share `cautious` while no temperature is known.
    pub(super) fn new(set_point: f64, cautious: f64) -> Heat {
        Heat {
            set_point,
            cautious,
            limit: FIRMWARE_LIMIT,
            margin: (FIRMWARE_LIMIT - set_point).clamp(0.0, MARGIN),
            bearable: 1.0,
            filter: None,
            frozen: Frozen::default(),
            throttled_for: 0.0,
            hot_for: 0.0,
            cool_for: 0.0,
            overheated: false,
            last: Duration::ZERO,
        }
    }

    pub(super) fn step(&mut self, now: Duration, sample: &Sample) -> Allowed {
        let seconds = now.saturating_sub(self.last).as_secs_f64();
        self.last = now;
        let free = Allowed { share: 1.0, lost: false, throttled: false, overheated: false };
        let reading = match sample.temperature {
            Temperature::None => {
                let throttled = self.throttled(sample, seconds, f64::INFINITY);
                return Allowed { throttled, share: if throttled { self.cautious } else { 1.0 }, ..free };
            }
            Temperature::Celsius(reading) if !self.frozen.is(reading, sample, seconds) => reading,
            Temperature::Celsius(_) | Temperature::Lost => {
                self.filter = None;
                return Allowed { lost: true, share: self.cautious, ..free };
            }
        };
        let filter = self.follow(reading, seconds);
        let throttled = self.throttled(sample, seconds, filter.temperature);
        let target = self.set_point.min(self.limit - self.margin);
        // A prediction may warn; it never gives leave.
        let ahead = filter.temperature + AHEAD * filter.slope;
        let error = target - ahead;
        let share = self.bearable + error / BAND;
        let working = sample.own_load > 0.05 * sample.cpus as f64;
        if error < 0.0 || (share < 1.0 && working) {
            let time = if error < -1.5 { INTEGRAL_DOWN } else { INTEGRAL };
            self.bearable = (self.bearable + error / BAND * seconds.min(5.0) / time).clamp(LEAST, 1.0);
        }
        let share = share.clamp(LEAST, 1.0);
        self.watch(share, ahead, filter.temperature, seconds);
        Allowed { share, lost: false, throttled, overheated: self.overheated }
    }

    fn follow(&mut self, reading: f64, seconds: f64) -> Filter {
        let fresh = Filter { temperature: reading, slope: 0.0 };
        // After a pause of the whole system the old slope means nothing.
        let Some(last) = self.filter.filter(|_| seconds > 0.0 && seconds < 30.0) else {
            self.filter = Some(fresh);
            return fresh;
        };
        let part = |time: f64| 1.0 - (-seconds / time).exp();
        let temperature = last.temperature + part(SMOOTH) * (reading - last.temperature);
        let slope = (temperature - last.temperature) / seconds;
        let filter = Filter { temperature, slope: last.slope + part(SMOOTH_SLOPE) * (slope - last.slope) };
        self.filter = Some(filter);
        filter
    }

    /// Whether the clock is held down because of heat, by the firmware's bits or, where there are none, by the engine's own
    /// speed. Some boards are told to throttle earlier than usual: the limit is learned.
    fn throttled(&mut self, sample: &Sample, seconds: f64, temperature: f64) -> bool {
        // The speed of a request that is over says nothing of now; a pause neither counts nor begins anew.
        if sample.firmware.is_none() && !sample.work.running {
            return false;
        }
        let weak = sample.under_voltage == Some(true);
        let seen = match sample.firmware {
            Some(bits) => bits.throttled() && !weak,
            None => {
                let slow = sample.work.relative_speed.is_some_and(|speed| speed < 0.6);
                // Other reasons to be slow are known.
                slow && temperature > 65.0 && temperature.is_finite() && sample.other_load < 0.5
            }
        };
        self.throttled_for = if seen { self.throttled_for + seconds } else { 0.0 };
        let throttled = seen && (sample.firmware.is_some() || self.throttled_for >= 10.0);
        if throttled && temperature < self.limit {
            self.limit = temperature.max(LOWEST_LIMIT);
        }
        throttled
    }

    fn watch(&mut self, share: f64, ahead: f64, temperature: f64, seconds: f64) {
        let hot = share <= 2.0 * LEAST && ahead > self.limit - 2.0;
        self.hot_for = if hot { self.hot_for + seconds } else { 0.0 };
        let cool = temperature < self.limit - MARGIN;
        self.cool_for = if cool { self.cool_for + seconds } else { 0.0 };
        if self.hot_for >= 10.0 {
            self.overheated = true;
        } else if self.cool_for >= 30.0 {
            self.overheated = false;
        }
    }
}

impl Frozen {
    /// Counts `seconds` of load with `reading`; whether the sensor is frozen.
    fn is(&mut self, reading: f64, sample: &Sample, seconds: f64) -> bool {
        if reading != self.reading {
            *self = Frozen { reading, ..Frozen::default() };
            return false;
        }
        let load = (sample.own_load + sample.other_load) / sample.cpus.max(1) as f64;
        if load > 0.5 {
            self.busy += seconds;
        } else if load < 0.1 {
            self.idle += seconds;
        }
        (self.busy >= FROZEN && self.idle >= FROZEN) || self.busy >= 10.0 * FROZEN
    }
}
