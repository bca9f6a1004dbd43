//! `emberd debug thermal`: the governor beside constant settings on simulated boards, as a picture and a table.

use std::fmt::Write as _;
use std::path::PathBuf;

use clap::Args;

use super::super::error::Error;
use super::model::print;
use crate::engine::checkpoint::output;
use crate::governor::simulator::{Board, CPUS, Day, Driver, Run, THROTTLES};

/// Length of a run; the comparison counts all of it.
const SECONDS: usize = 2 * 3600;

/// Set point, and what a constant setting may reach to count as keeping to it: readings are half degrees.
const SET_POINT: f64 = 73.0;
const CEILING: f64 = 73.3;

/// Highest set point that the configuration takes.
const HIGHEST: f64 = 79.0;

#[derive(Args)]
pub(super) struct Thermal {
    /// Directory for governor.svg; only the table is printed when absent
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// A board to show; its figures are assumptions of the size that others measured on a Pi 5.
struct Shown {
    name: &'static str,
    board: Board,
    ambient: f64,
}

fn shown() -> [Shown; 3] {
    let pi5 = |resistance, capacity| Board {
        resistance,
        capacity,
        idle: 2.7,
        core: 1.35,
        shared: 0.8,
        stalled: 0.7,
        slowest: 0.625,
        voltage: 1.5,
        prefill: 45.0,
        decode: 8.0,
        wall: 14.0,
    };
    [
        Shown { name: "bare, 25 °C room", board: pi5(9.0, 18.0), ambient: 25.0 },
        Shown { name: "passive case, 35 °C cupboard", board: pi5(5.5, 110.0), ambient: 35.0 },
        Shown { name: "active cooler, 25 °C room", board: pi5(3.2, 40.0), ambient: 25.0 },
    ]
}

/// The runs on one board.
struct Compared {
    name: &'static str,
    governor: Run,
    /// The governor at the highest set point.
    highest: Run,
    all: Run,
    /// Answers of the best constant setting at the set point, and of the best one with all threads.
    best: f64,
    best_all: f64,
}

fn compare(shown: &Shown) -> Compared {
    let day = Day { ambient: shown.ambient, swing: 0.0, others: 0.0, request: (500.0, 200.0), pause: 0.0, seed: 1 };
    let board = &shown.board;
    let answered = |constant: Option<crate::governor::simulator::Constant>| constant.map_or(f64::NAN, |c| c.answered);
    Compared {
        name: shown.name,
        governor: board.run(&day, Driver::governor(), SECONDS),
        highest: board.run(&day, Driver::governor_at(HIGHEST), SECONDS),
        all: board.run(&day, Driver::all_threads(), SECONDS),
        best: answered(board.best_constant(&day, CEILING, SECONDS)),
        best_all: answered(board.constant(&day, (CPUS, CPUS), CEILING, SECONDS)),
    }
}

pub(super) fn run(args: &Thermal) -> Result<(), Error> {
    let compared: Vec<Compared> = shown().iter().map(compare).collect();
    print(&table(&compared))?;
    let Some(out) = &args.out else { return Ok(()) };
    let file = out.join("governor.svg");
    output::atomically(&file, |out| std::io::Write::write_all(out, picture(&compared).as_bytes()))
        .map_err(|error| Error::Failed(format!("{}: {error}", file.display())))
}

fn table(compared: &[Compared]) -> String {
    let hours = SECONDS as f64 / 3600.0;
    let mut text = String::from(
        "simulated, nothing measured; requests of 500 + 200 tokens, one after the other, answers an hour\n\n\
         board                          setting                                  answers/h  hottest  throttled\n",
    );
    for c in compared {
        let mut row = |setting: &str, answered: f64, rest: String| {
            let _ = writeln!(text, "{:30} {setting:40} {:9.1}  {rest}", c.name, answered / hours);
        };
        let measured =
            |run: &Run| format!("{:4.1} °C  {:7.0} %", run.peak(), 100.0 * run.throttled() as f64 / SECONDS as f64);
        row("governor at 73 °C", c.governor.answered(), measured(&c.governor));
        row("best constant setting at 73 °C", c.best, String::new());
        row("all threads, best pause at 73 °C", c.best_all, String::new());
        row("governor at 79 °C", c.highest.answered(), measured(&c.highest));
        row("all threads, no limit but the firmware's", c.all.answered(), measured(&c.all));
    }
    text
}

/// Size of a panel, and the margins around it.
const WIDTH: f64 = 360.0;
const HEIGHT: f64 = 170.0;
const LEFT: f64 = 46.0;
const TOP: f64 = 44.0;

/// Colours of the governor and of all threads.
const OURS: &str = "#0b7a75";
const THEIRS: &str = "#c8553d";

/// Temperatures on the vertical axis.
const COLDEST: f64 = 30.0;
const HOTTEST: f64 = 90.0;

fn picture(compared: &[Compared]) -> String {
    let (width, height) = ((WIDTH + LEFT) * compared.len() as f64 + 20.0, 2.0 * (HEIGHT + TOP) + 90.0);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    for (at, c) in compared.iter().enumerate() {
        let x = LEFT + at as f64 * (WIDTH + LEFT);
        temperatures(&mut svg, x, TOP, c);
        bars(&mut svg, x, 2.0 * TOP + HEIGHT + 10.0, c);
    }
    let legend = height - 14.0;
    let _ = writeln!(
        svg,
        "<text x=\"{LEFT}\" y=\"{legend}\"><tspan fill=\"{OURS}\">■ governor</tspan>  <tspan fill=\"{THEIRS}\">■ all \
         threads until the firmware throttles</tspan>  <tspan fill=\"#777\">Simulated: one heat capacity, one \
         resistance, figures of a Pi 5; nothing was measured.</tspan></text>\n</svg>"
    );
    svg
}

fn temperatures(svg: &mut String, x: f64, y: f64, c: &Compared) {
    let level = |celsius: f64| y + HEIGHT * (HOTTEST - celsius) / (HOTTEST - COLDEST);
    let _ = writeln!(svg, "<text x=\"{x}\" y=\"{}\" font-weight=\"bold\">{}</text>", y - 20.0, c.name);
    let _ = writeln!(svg, "<text x=\"{x}\" y=\"{}\" fill=\"#555\">°C in the first hour</text>", y - 5.0);
    for celsius in [40.0, 60.0, SET_POINT, THROTTLES] {
        let (at, dash) = (level(celsius), if celsius > 70.0 { "4 3" } else { "1 5" });
        let _ = writeln!(
            svg,
            "<line x1=\"{x}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#999\" stroke-dasharray=\"{dash}\"/>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"#555\">{celsius:.0}</text>",
            x + WIDTH,
            x - 6.0,
            at + 4.0
        );
    }
    for (run, colour) in [(&c.all, THEIRS), (&c.governor, OURS)] {
        let points: String = run.seconds[..3600]
            .iter()
            .enumerate()
            .step_by(10)
            .map(|(second, s)| {
                format!(
                    "{:.1},{:.1} ",
                    x + WIDTH * second as f64 / 3600.0,
                    level(s.temperature.clamp(COLDEST, HOTTEST))
                )
            })
            .collect();
        let _ = writeln!(svg, "<polyline points=\"{points}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\"/>");
    }
}

fn bars(svg: &mut String, x: f64, y: f64, c: &Compared) {
    let hours = SECONDS as f64 / 3600.0;
    let rows = [
        ("governor at 73 °C", c.governor.answered(), OURS),
        ("best constant at 73 °C", c.best, "#7a8b99"),
        ("all threads at 73 °C", c.best_all, "#7a8b99"),
        ("governor at 79 °C", c.highest.answered(), OURS),
        ("all threads, limited by the firmware only", c.all.answered(), THEIRS),
    ];
    let most = rows.iter().map(|(_, answered, _)| *answered).fold(1.0, f64::max);
    let _ =
        writeln!(svg, "<text x=\"{x}\" y=\"{}\" fill=\"#555\">answers an hour, 500 + 200 tokens each</text>", y - 8.0);
    for (at, (name, answered, colour)) in rows.into_iter().enumerate() {
        let (top, long) = (y + 40.0 * at as f64, WIDTH * answered / most);
        let _ = writeln!(
            svg,
            "<text x=\"{x}\" y=\"{:.1}\">{name}: {:.0}</text><rect x=\"{x}\" y=\"{:.1}\" width=\"{long:.1}\" \
             height=\"12\" fill=\"{colour}\"/>",
            top + 12.0,
            answered / hours,
            top + 17.0
        );
    }
}
