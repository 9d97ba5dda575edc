using System;
using System.Configuration;

namespace Claviger.AspNet
{
    /// <summary>
    /// Custody is away, or refused the call. Nothing was made or checked. ASP.NET
    /// makes every other exception of a data protector a token that is wrong; those
    /// of the configuration it lets through. Who swallows these too is what
    /// <see cref="Watch"/> is for.
    /// </summary>
    [Serializable]
    public sealed class Unavailable : ConfigurationErrorsException
    {
        public Unavailable(string message, Exception inner) : base(message, inner)
        {
        }

        private Unavailable(System.Runtime.Serialization.SerializationInfo info, System.Runtime.Serialization.StreamingContext context)
            : base(info, context)
        {
        }
    }
}
