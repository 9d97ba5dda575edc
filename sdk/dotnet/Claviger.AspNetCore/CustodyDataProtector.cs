using System.Security.Cryptography;
using Microsoft.AspNetCore.DataProtection;

namespace Claviger.AspNetCore;

/// <summary>Data Protection with its key in custody: a chain of purposes, and what is protected under it.</summary>
internal sealed class CustodyDataProtector(CustodyKey key, string[] purposes) : IDataProtector
{
    public IDataProtector CreateProtector(string purpose)
    {
        ArgumentNullException.ThrowIfNull(purpose);
        return new CustodyDataProtector(key, [.. purposes, purpose]);
    }

    public byte[] Protect(byte[] plaintext)
    {
        ArgumentNullException.ThrowIfNull(plaintext);
        return Watch.Over(() => key.Protect(purposes, plaintext));
    }

    public byte[] Unprotect(byte[] protectedData)
    {
        ArgumentNullException.ThrowIfNull(protectedData);
        return Watch.Over(() => key.Unprotect(purposes, protectedData)) ?? throw new CryptographicException("The payload was invalid.");
    }
}
