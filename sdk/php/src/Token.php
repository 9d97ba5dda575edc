<?php

namespace Claviger;

/** A token that is valid. */
final class Token
{
    /**
     * @param int  $version of the key that made it
     * @param bool $renew   a newer version makes tokens now: make this one again where that can be
     */
    public function __construct(
        public readonly string $payload,
        public readonly int $version,
        public readonly bool $renew,
    ) {
    }
}
