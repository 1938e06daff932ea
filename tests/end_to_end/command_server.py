"""The command, and Python, with the command's libraries loaded, for tests that run scripts of many calls.

As a program, with the path of a socket: runs each call that comes in a child, with the caller's files, folder and
environment. `write_client` writes a program that sends its calls there: one whose name is ``python`` has the script run
that is its first word, any other the command.
"""

import importlib
import json
import os
import pkgutil
import runpy
import signal
import socket
import sys
import traceback
from pathlib import Path

CLIENT = """#!{python} -SE
import json, os, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect("{address}")
job = {{"arguments": sys.argv, "folder": os.getcwd(), "environment": dict(os.environ)}}
socket.send_fds(server, [json.dumps(job).encode()], [0, 1, 2])
sys.exit(server.recv(1)[0])
"""


def write_client(path, address):
    """Write the program that sends its calls to a server."""
    path.write_text(CLIENT.format(python=sys.executable, address=address))
    path.chmod(0o755)


def serve(address):
    """Answer calls until the process is ended."""
    before = set(os.environ)
    import unsupseg_cli
    from unsupseg_cli.cli.main import main

    for module in pkgutil.walk_packages(unsupseg_cli.__path__, "unsupseg_cli."):
        importlib.import_module(module.name)
    set_by_imports = {name: value for name, value in os.environ.items() if name not in before}
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children are not waited for
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    print("ready", flush=True)
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            answer(connection, main, set_by_imports)
        connection.close()


def answer(connection, main, set_by_imports):
    """Run one call, in whose environment is what the imports set, and send its exit status."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    message, files, _, _ = socket.recv_fds(connection, 1 << 20, 3)
    job = json.loads(message)
    for number, file in enumerate(files):
        os.dup2(file, number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
    os.chdir(job["folder"])
    os.environ.clear()
    os.environ.update(set_by_imports | job["environment"])
    program, *arguments = job["arguments"]
    script = arguments[0] if Path(program).name == "python" else ""
    sys.argv = arguments if script else ["unsupseg", *arguments]
    code = 1
    try:
        if script:
            sys.path.insert(0, str(Path(script).parent))
            runpy.run_path(script, run_name="__main__")
        else:
            main()
        code = 0
    except SystemExit as ended:
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        connection.send(bytes([code]))
        os._exit(code)


if __name__ == "__main__":
    serve(str(Path(sys.argv[1])))
