"""A relay between sites and server whose line can be cut, stalled or slowed."""

import socket
import threading
import time
from contextlib import suppress


class Relay:
    """Hands on what comes in at one port to another one on this machine.

    Args:
        port: that is opened.
        target: where it leads to.

    Attributes:
        delay: seconds that each piece takes.
    """

    def __init__(self, port, target):
        self._target = target
        self._flows = {"to the server": threading.Event(), "to the sites": threading.Event()}
        self.mend()
        self._sockets = set()
        self._listener = socket.create_server(("127.0.0.1", port), backlog=50)
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self):
        """Close all connections, and every new one at once."""
        self._is_cut = True
        for each in list(self._sockets):
            self._close(each)

    def stall(self, *ways):
        """Let nothing through, or nothing in these ways; connections stay open."""
        for way in ways or self._flows:
            self._flows[way].clear()

    def mend(self):
        """Let everything through again."""
        self._is_cut, self.delay = False, 0.0
        for flow in self._flows.values():
            flow.set()

    def close(self):
        self.mend()
        self.cut()
        self._listener.close()

    def _accept(self):
        with suppress(OSError):
            while True:
                inner, _ = self._listener.accept()
                if self._is_cut:
                    inner.close()
                    continue
                try:
                    outer = socket.create_connection(("127.0.0.1", self._target), 5)
                except OSError:  # the server is not there
                    inner.close()
                    continue
                outer.settimeout(None)
                self._sockets |= {inner, outer}
                for one, other, flow in zip((inner, outer), (outer, inner), self._flows.values(), strict=True):
                    threading.Thread(target=self._pump, args=(one, other, flow), daemon=True).start()

    def _pump(self, source, sink, flow):
        with suppress(OSError):
            while piece := source.recv(65536):
                flow.wait()
                time.sleep(self.delay)
                sink.sendall(piece)
        for each in (source, sink):
            self._close(each)

    def _close(self, each):
        self._sockets.discard(each)
        with suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
        each.close()
