"""The command. Every verb but `up`, `join` and `demo` talks to the daemon of this device."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from apps import cli_bench, cli_chaos, cli_doctor, cli_models, cli_trust, show
from apps.settings import DEFAULT_API_PORT, DEFAULT_PORT, Settings, default_threads, parse_size
from apps.terminal import AsJson, Home, ask, awaited, err, find_daemon, out, print_json
from mesh.config import StateFolder
from mesh.errors import ConfigError, PotluckError
from mesh.ids import Address
from mesh.limits import MAX_SESSIONS
from planner.plan import Wire
from runtime.compute.precision import Precision

INTERRUPTED = 130  # what a shell expects after Ctrl-C

app = typer.Typer(
    name="potluck",
    help="Pool the idle devices of a home into one machine for transformer models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(cli_bench.bench, name="bench")


def main() -> None:
    """Runs the command; an error of ours is one line and an exit status, never a traceback."""
    try:
        app()
    except PotluckError as error:
        err.print(f"[bold red]potluck:[/] {show.escape(str(error))}")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except Exception as error:
        # Our own mistake. A person gets one line; whoever wants to mend it gets everything.
        if os.environ.get("POTLUCK_DEBUG"):
            raise
        err.print(
            f"[bold red]potluck:[/] a mistake of ours: {type(error).__name__}: "
            f"{show.escape(str(error))}; POTLUCK_DEBUG=1 shows where, please report it"
        )
        sys.exit(1)


@app.command()
def up(
    home: Home = None,
    name: Annotated[str | None, typer.Option(help="What the others call this device.")] = None,
    model: Annotated[str | None, typer.Option(help="Plan this model at once.")] = None,
    memory: Annotated[str | None, typer.Option(help="What may be used, such as 2GB.")] = None,
    sessions: Annotated[
        int, typer.Option(min=1, max=MAX_SESSIONS, help="Conversations at once.")
    ] = 4,
    context: Annotated[int, typer.Option(min=16, help="Tokens a conversation.")] = 8192,
    precision: Annotated[
        Precision, typer.Option(help="How weights are held in memory.")
    ] = Precision.AUTO,
    wire: Annotated[
        Wire, typer.Option(help="The narrowest type that numbers may travel as between devices.")
    ] = Wire.FP32,
    device: Annotated[
        str, typer.Option(help="What computes: cpu, cuda, cuda:1 or mps; auto is the best here.")
    ] = "auto",
    interface: Annotated[
        list[str] | None, typer.Option(help="Network interface; physical ones otherwise.")
    ] = None,
    peer: Annotated[
        list[str] | None, typer.Option(help="HOST:PORT of a member, where mDNS does not reach.")
    ] = None,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Where devices meet; 0 for any.")
    ] = DEFAULT_PORT,
    api_port: Annotated[
        int, typer.Option(min=0, max=65535, help="The local API; 0 for any.")
    ] = DEFAULT_API_PORT,
    as_json: AsJson = False,
) -> None:
    """Be part of the mesh, until Ctrl-C. The first device makes the mesh."""
    folder = StateFolder.open(home)
    defaults = Settings(home=folder.path)
    settings = Settings(
        home=folder.path,
        name=name or defaults.name,
        model=model,
        memory_bytes=parse_size(memory) if memory else None,
        sessions=sessions,
        context=context,
        precision=precision,
        wire=wire,
        device=device,
        interfaces=tuple(interface or ()),
        peers=tuple(Address.parse(text) for text in peer or ()),
        port=port,
        api_port=api_port,
        threads=default_threads(),
    )
    from apps.torch_start import import_torch  # only this verb computes

    import_torch()
    from apps.up import run_up

    run_up(settings, folder, out, as_json=as_json)


app.command()(cli_trust.invite)
app.command()(cli_trust.join)
app.command()(cli_trust.leave)
app.command()(cli_trust.rotate)


@app.command()
def status(
    watched: Annotated[
        bool,
        typer.Option(
            "--watch", help="What each device does in a pass, predicted and measured; until Ctrl-C."
        ),
    ] = False,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Who is here, who leads, and what runs where."""
    if watched:
        port = find_daemon(StateFolder.open(home))
        from apps.watch import watch

        awaited(watch(port, out, as_json=as_json))
        return
    body = ask(home, lambda client: client.get("/potluck/status"))
    if as_json:
        print_json(body)
    else:
        show.status(out, body)


@app.command()
def plan(
    model: Annotated[str, typer.Argument(help="A name or the path of a GGUF file.")],
    png: Annotated[
        Path | None, typer.Option(help="Draw the plan as a picture, too: who holds what, and when.")
    ] = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Every way to run a model on the devices that are here, with what each would cost, and why."""
    if png is not None:
        from apps.draw.picture import check_picture

        check_picture(png)  # before anybody measures for it
    with show.waiting(err, "measuring devices and links", quiet=as_json):
        body = ask(home, lambda client: client.get("/potluck/plan", model=_model(model)))
    if png is not None:
        from apps.draw.picture import save_picture
        from apps.draw.sheet import sheet_of

        save_picture(sheet_of(body), png)
    if as_json:
        print_json(body)
    else:
        show.plan(out, body)


@app.command()
def run(
    model: Annotated[str, typer.Argument(help="A name or the path of a GGUF file.")],
    prompt: Annotated[str | None, typer.Argument(help="Standard input otherwise.")] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Talk with the model; without a prompt, you do.")
    ] = False,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="256 of a text; a chat's answers end by themselves.")
    ] = None,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 0.8,
    top_p: Annotated[float, typer.Option(min=0, max=1)] = 0.95,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same text.")] = None,
    template: Annotated[
        str | None, typer.Option(help="Of a chat: chatml, gemma, llama3 or plain.")
    ] = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Continue a text with a model, or talk with it, on whatever devices the plan says."""
    body: dict[str, Any] = {"model": _model(model), "temperature": temperature, "top_p": top_p}
    if seed is not None:
        body["seed"] = seed
    if max_tokens is not None:
        body["max_tokens"] = max_tokens
    if chat or (prompt is None and sys.stdin.isatty()):
        if as_json:
            raise ConfigError("--json answers once: give a prompt, and leave --chat out")
        if template is not None:
            body["chat_template"] = template
        _talk(find_daemon(StateFolder.open(home)), body, prompt)
        return
    body["prompt"] = sys.stdin.read() if prompt is None else prompt
    port = find_daemon(StateFolder.open(home))
    from apps.run import stream_text

    result = awaited(stream_text(port, {"max_tokens": 256} | body, out, err, quiet=as_json))
    if as_json:
        print_json(result)


app.command()(cli_models.pull)
app.command("list")(cli_models.list_models)
app.command()(cli_models.ps)
app.command()(cli_models.rm)
app.command()(cli_chaos.chaos)
app.command()(cli_doctor.doctor)


@app.command()
def demo(
    as_json: AsJson = False,
    tokens: Annotated[int, typer.Option(min=24, help="Length of each generation.")] = 64,
) -> None:
    """Three devices on this machine: generate, lose one, take it back, lose the leader."""
    from apps.demo import run_demo

    result = awaited(run_demo(err if as_json else out, tokens))
    if as_json:
        print_json(result)
    if not result["tokens_equal"]:
        raise PotluckError("the tokens differ from those of the undisturbed run")


def _talk(port: int, body: dict[str, Any], first: str | None) -> None:
    from apps.chat import Chat
    from apps.chat_input import is_terminal, line_reader

    Chat(port, body, out, err, is_terminal=is_terminal()).run(line_reader(), first)


def _model(name: str) -> str:
    """A path as the daemon, which may run in another folder, can open it."""
    path = Path(name).expanduser()
    return str(path.resolve()) if path.exists() else name


if __name__ == "__main__":
    main()
